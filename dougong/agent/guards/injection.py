"""Prompt injection: orders to the model in what should only be read, and orders to forget its orders anywhere.

In results of tools: rules, and two classifiers of sentences. One knows words aimed at the answer ("add to your reply",
"include this code in your solution"). The other knows requests as users make them ("What is the capital of Brazil?"),
which documents hold for good reasons too: it counts only where the sentence speaks of nothing else in its document. In
what the user says, only orders to leave the rules are looked for: a user may ask for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

from dougong.agent.guards.disguise import plain, readings
from dougong.agent.guards.guard import INPUT, TOOL, Do, Finding, Guard, Place
from dougong.agent.guards.linear import Linear
from dougong.agent.guards.rules import Rule, first, rule
from dougong.agent.guards.segments import folded, foreign, segments
from dougong.agent.guards.weights import shipped
from dougong.base import DougongError

_RULES = r"(?:instructions?|rules?|guidelines?|prompts?|restrictions?|directions?|context|messages?|polic(?:y|ies))"
OVERRIDES = (
    rule(
        "an order to forget the rules",
        rf"""\b(?:ignore|disregard|forget|override|bypass|neglect|skip)\b [^.!?\n]{{0,40}}? \b(?:all|any|every
        |previous|prior|above|earlier|preceding|your|system|safety|the)\b [^.!?\n]{{0,30}}? \b{_RULES}\b
        | (?:忽略|无视|忘记|忘掉|不要理会|抛开|绕过)[^。！？\n]{{0,12}}(?:指令|提示|规则|要求|设定|说明|限制|规定)
        | (?:忽略|无视|忘记|忘掉|不要理会)(?:掉)?(?:以上|之前|上面|前面|上述|先前)的?(?:所有|全部|一切)?(?:内容
        |对话|文字|话)""",
    ),
    rule(
        "a new role without rules",
        r"""\byou \s+ are \s+ (?:now|no \s+ longer)\b [^.!?\n]{0,60}? \b(?:unrestricted|unfiltered|uncensored
        |jailbroken|DAN|developer \s+ mode|free \s+ (?:from|of)|bound|without \s+ (?:any \s+)? (?:rules|limits
        |restrictions|filters))\b
        | \b(?:enable|enter|activate|switch \s+ (?:in)?to)\b [^.!?\n]{0,20}? \b(?:developer|god|jailbreak|DAN|admin
        |debug) \s+ mode\b
        | \b(?:pretend|act|behave|respond|answer) \b [^.!?\n]{0,50}? \b(?:no|without) \s+ (?:any \s+|ethical \s+
        |moral \s+|safety \s+)* (?:rules|restrictions|limits|limitations|filters|guidelines|morals|ethics
        |censorship)\b
        | \bdo \s+ anything \s+ now\b
        | (?:从现在(?:开始|起)|现在)[^。！？\n]{0,4}你(?:就)?是[^。！？\n]{0,16}(?:DAN|没有(?:任何)?(?:限制|规则
        |约束|道德)|不受(?:任何)?(?:限制|约束)|无限制)
        | (?:进入|开启|启用|切换到)[^。！？\n]{0,4}(?:开发者|越狱|上帝|管理员|调试)模式
        | (?:假装|扮演|当作)[^。！？\n]{0,12}(?:没有|不受)(?:任何)?(?:限制|规则|约束|道德)""",
    ),
    rule(
        "a request for the system prompt",
        r"""\b(?:reveal|show|print|repeat|output|display|tell|give|leak|share|write|quote|copy|recite|dump|send
        |translate|encode|what (?:'s | \s+ (?:is|are|was|were)))\b [^.!?\n]{0,40}? \b(?:your|the) \s+ (?:\w+
        \s+){0,2}? (?:system \s+ (?:prompt|message|instructions?)|initial \s+ (?:prompt|instructions?)|hidden \s+
        (?:prompt|instructions?)|original \s+ (?:prompt|instructions?)|pre-?prompt)
        | \brepeat \b [^.!?\n]{0,20}? \b(?:everything|all|the \s+ (?:text|words)) \s+ above\b
        | (?:显示|输出|告诉我|重复|泄露)[^。！？\n]{0,8}(?:系统提示|系统指令|初始指令|提示词)""",
    ),
    rule(
        "a forged turn of the conversation",
        r"""<\|?(?:im_start|im_end|system|endoftext|start_header_id|eot_id)\|?>
        | \[/?(?:INST|SYS)\]
        | <</?SYS>>
        | ^\s* \#{2,3} \s* (?:system|new \s+ instructions?) \s* :? \s* $
        | \b(?:new|updated|important|real|actual) \s+ (?:system \s+)? instructions? \s* (?:for \s+ (?:the \s+)?
        (?:assistant|AI|model))? \s* :""",
    ),
)
ORDERS = (
    rule(
        "an order about the answer",
        r"""\b(?:in|to|into|from|of|with|at \s+ the \s+ (?:end|start|beginning) \s+ of) \s+ your \s+ (?:next \s+
        |final \s+)? (?:response|reply|answer|output|summary)\b
        | \b(?:reply|respond|answer) \s+ (?:only \s+)? (?:in|with|using|as|by)\b [^.!?\n]{1,60}$
        | \b(?:modify|change|encode|encrypt|translate|replace|reverse|render|augment|enhance) \s+ (?:every \s+ \w+
        \s+ in \s+)? your \s+ (?:\w+ \s+)? (?:response|reply|answer|output|message)\b""",
    ),
    rule(
        "an order to an assistant",
        r"""\b(?:dear \s+|attention,? \s+|note \s+ to \s+ (?:the \s+)?|hey,? \s+|message \s+ (?:for|to) \s+ (?:the
        \s+)?) (?:AI|assistant|chatbot|language \s+ model|LLM|GPT|bot|agent)\b
        | \b(?:AI|LLM|assistant|agent)s? \s+ (?:reading|processing|summari[sz]ing) \s+ this\b
        | \bdo \s+ not \s+ (?:tell|mention|inform|show|reveal) \b [^.!?\n]{0,30} \b(?:the \s+ user|this \s+
        (?:instruction|message))
        | \bwithout \s+ (?:telling|informing|asking|notifying) \s+ the \s+ user\b""",
    ),
)


@final
class Injection(Guard):
    """Blocks orders in results of tools, and orders to leave the rules anywhere.

    requests  what is done about requests in results of tools: "block" or "flag"
    aimed, request  classifiers of sentences; None: the shipped ones
    orders   rules for results of tools, beside those against orders to leave the rules
    """

    name = "injection"

    def __init__(
        self,
        *,
        requests: Do = "block",
        aimed: Linear | None = None,
        request: Linear | None = None,
        orders: Sequence[Rule] = ORDERS,
        places: frozenset[Place] = INPUT | TOOL,
    ):
        if requests == "redact":
            raise DougongError("requests is 'redact', which this guard cannot do; expected 'block' or 'flag'")
        self.places = places
        self._requests: Do = requests
        self._orders = tuple(orders)
        self._aimed = aimed or shipped("aimed")
        self._request = request or shipped("request")

    def check(self, text: str, place: Place) -> Finding | None:
        for reading in readings(text):
            found = first(OVERRIDES, reading) or (first(self._orders, reading) if place == "tool" else None)
            if found is not None:
                return Finding(self.name, f"{found.name} (a rule)")
        return self._judge(text) if place == "tool" else None

    def _judge(self, text: str) -> Finding | None:
        pieces = list(_pieces(text))
        aimed = next((piece for piece in pieces if self._aimed.fires(piece)), None)
        if aimed is not None:
            return Finding(self.name, f"words aimed at the model's answer: {_told(self._aimed, aimed)}")
        request = next((piece for piece in foreign(segments(plain(text))) if self._request.fires(piece)), None)
        if request is None:
            return None
        reason = f"a request that has nothing to do with the text: {_told(self._request, request)}"
        return Finding(self.name, reason, self._requests)


def _pieces(text: str) -> Iterable[str]:
    text = plain(text)
    yield from segments(text)
    yield from folded(text)
    for reading in list(readings(text))[1:]:
        yield from segments(reading)


def _told(classifier: Linear, piece: str) -> str:
    return ", ".join(repr(gram) for gram in classifier.why(piece)) or "its wording"
