"use strict";

// What the page says, in both languages.

const WORDS = {
  en: {
    skip: "Skip to the message", probabilities: "Probabilities", settings: "Settings", theme: "Light or dark", language: "切换到中文",
    languageName: "中", new: "New", system: "System message", temperature: "Temperature", maxTokens: "Longest answer (tokens)", seed: "Seed",
    key: "API key", keyHint: "none", seedHint: "random", systemHint: "how the model should behave", conversation: "Conversation",
    message: "Message", placeholder: "Write a message", placeholderText: "Begin a text", send: "Send", stop: "Stop", retry: "Try again",
    copy: "Copy", copied: "Copied", thoughts: "Thoughts", thinking: "Thinking", down: "To the end", greeting: "What shall we talk about?",
    greetingText: "How does it begin?", about: "{model} runs on this machine. Point at a word of its answer to see how likely it was, and what else it might have said.",
    hint: "Enter sends, Shift+Enter begins a new line. Answers can be wrong.", tokens: "{n} tokens", speed: "{n} a second",
    length: "cut at the longest length", stopped: "stopped", probabilitiesHelp: "Colour what was unlikely", answered: "The answer is complete.",
    lost: "The connection to the server is lost.", needKey: "This server needs an API key; set it in the settings.", you: "You", model: "Model",
    failed: "The answer broke off: ", examples: ["What is 17 + 25?", "Explain how rainbows form.", "Write a short poem about wood."],
    examplesText: ["Once upon a time", "The old carpenter"], tokenHelp: "Arrow keys walk through the tokens.",
  },
  zh: {
    skip: "跳到输入框", probabilities: "概率", settings: "设置", theme: "浅色或深色", language: "Switch to English", languageName: "EN", new: "新对话",
    system: "系统消息", temperature: "温度", maxTokens: "回答最长（词元）", seed: "随机种子", key: "API 密钥", keyHint: "无", seedHint: "随机",
    systemHint: "希望模型如何表现", conversation: "对话", message: "消息", placeholder: "写点什么", placeholderText: "写一个开头", send: "发送",
    stop: "停止", retry: "重试", copy: "复制", copied: "已复制", thoughts: "思考过程", thinking: "思考中", down: "到末尾", greeting: "想聊些什么？",
    greetingText: "故事从哪里开始？", about: "{model} 就运行在这台机器上。把鼠标移到回答的词上，可以看到它的概率，以及模型本来还可能说什么。",
    hint: "回车发送，Shift+回车换行。回答可能有误。", tokens: "{n} 个词元", speed: "每秒 {n} 个", length: "达到最大长度", stopped: "已停止",
    probabilitiesHelp: "给不太可能的词上色", answered: "回答完毕。", lost: "与服务器的连接断开了。", needKey: "此服务器需要 API 密钥，请在设置中填写。",
    you: "你", model: "模型", failed: "回答中断：", examples: ["17 + 25 等于多少？", "彩虹是怎么形成的？", "写一首关于木头的短诗。"],
    examplesText: ["从前有座山", "老木匠"], tokenHelp: "用方向键逐个查看词元。",
  },
};
