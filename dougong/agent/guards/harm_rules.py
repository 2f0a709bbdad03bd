"""What harmful requests look like: an act and whom or what it is done to, for a word alone says little.

"How do I kill a process?" passes and "how do I kill a man?" does not, for only the second names a victim. Written from
the kinds of harm that usage policies list, and improved by what was missed in one half of XSTest. Rules do not know the
world: whether a name is a person's or a novel's, and whether an odd wording hides an act, is beyond them.
"""

from __future__ import annotations

from dougong.agent.guards.rules import rule

_RELATIVE = r"""(?:wife|husband|spouse|partner|boss|manager|neighbou?rs?|ex(?:-?\w+)?|girlfriend|boyfriend|friends?
|family|mother|father|mom|mum|dad|parents?|brother|sister|son|daughter|uncle|aunt|cousin|grand\w+|step\w+|teacher
|co-?workers?|colleagues?|classmates?|room-?mates?|landlord|tenant|therapist|doctor|students?|employees?|gardener
|cleaner|nanny|client|patient|date|crush|match|rival|enem(?:y|ies)|pets?|dog|cat)"""
_WHOM = rf"""(?:someone|somebody|anyone|everyone|one's \s+ \w+|people|persons?|individuals?|humans?|m[ae]n|wom[ae]n
|child(?:ren)?|kids?|teen(?:ager)?s?|minors?|girls?|boys?|bab(?:y|ies)|infants?|toddlers?|students?|civilians?
|pedestrians?|politicians?|celebrit(?:y|ies)|police \s* (?:m[ae]n|officers?)?|cops?|judges?|the \s+ president
|strangers?|victims?|hostages?|crowds?|others|him|her|them|myself|yourself|animals?|employees?|customers?|voters?
|refugees|immigrants|famil(?:y|ies)|villages?|cit(?:y|ies)|crowds?|populations?|communit(?:y|ies)|(?:gay|black|white
|jewish|muslim|roma|trans|old|disabled) \s+ people|(?:my|your|his|her|their|our|an?|the|this|that) \s+ (?:[\w-]+
\s+){{0,2}}? {_RELATIVE})"""
_NEAR = r"(?:\s+ [\w'-]+){0,3}? \s+"
_GROUPS = r"""(?:(?:wo)?men|girls|gays|lesbians|homosexuals|trans(?:gender|sexual)s|bisexuals|muslims|islam|jews
|christians|catholics|hindus|buddhists|atheists|blacks|whites|asians|africans|arabs|the \s+ (?:chinese|poor|homeless
|disabled|elderly|blind|deaf|unemployed)|indians|latin[oax]s|hispanics|mexicans|roma|gyps(?:y|ies)|natives|immigrants
|migrants|refugees|foreigners|minorit(?:y|ies)|mothers|pensioners|(?:[a-z-]+ \s+)? (?:people|persons|folks?|workers
|couples|individuals|citizens|communit(?:y|ies)) (?:\s+ (?:on|with|of|from) \s+ \w+)?)"""
_FICTION = r"""\b(?:video \s* games?|(?:in|for|of) \s+ (?:the \s+|a \s+|an \s+|my \s+)? (?:[\w-]+ \s+){0,3}?
(?:games?|movies?|films?|novels?|books?|story|stories|series|shows?|plays?|screenplay|script|musical|fiction|saga
|trilogy))\b
| \bin \s+ (?:call \s+ of \s+ duty|league \s+ of \s+ legends|overwatch|valorant|counter-?strike|roblox|dota)\b
| \b(?:characters?|fictional|fiction|npcs?|villains?|zombies?|monsters?|minecraft|fortnite|gta|skyrim|the \s+ sims
|call \s+ of \s+ duty|counter-?strike|roblox|dungeons)\b"""

# A question about what others did, in history or in a story.
_TOLD = rf"""{_FICTION}
| \b(?:why|how|when|where|what|who)\b (?:\s+ \w+){{0,2}}? \s+ (?:did|does|was|were|had) \s+ (?!i\b|we\b|you\b)"""

HARMS = (
    rule(
        "violence against someone",
        rf"""\b(?:kill(?:ing)?|murder(?:ing)?|stab(?:bing)?|shoot(?:ing)?|strangl(?:e|ing)|chok(?:e|ing)|throttl(?:e
        |ing)|poison(?:ing)?|drown(?:ing)?|assassinat(?:e|ing)|slaughter(?:ing)?|behead(?:ing)?|decapitat(?:e|ing)
        |tortur(?:e|ing)|maim|suffocat(?:e|ing)|smother|hurt(?:ing)?|harm(?:ing)?|injur(?:e|ing)|assault(?:ing)?
        |attack(?:ing)?|rap(?:e|ing)|molest(?:ing)?|kidnap(?:ping)?|abduct(?:ing)?|stalk(?:ing)?|blackmail(?:ing)?
        |extort(?:ing)?|harass(?:ing)?|(?:cyber)?bully(?:ing)?|threaten(?:ing)?|intimidat(?:e|ing)|humiliat(?:e|ing)
        |exterminat(?:e|ing)|dismember|gut|terminat(?:e|ing)|execut(?:e|ing)|eliminat(?:e|ing)|eradicat(?:e|ing)
        |annihilat(?:e|ing)|obliterat(?:e|ing)|decimat(?:e|ing)|wip(?:e|ing) \s+ out|slay(?:ing)?|butcher(?:ing)?
        |snip(?:e|ing)|punch(?:ing)?|hit(?:ting)?|crush(?:ing)?|smash(?:ing)?|shatter(?:ing)?|bash(?:ing)?
        |kick(?:ing)?|slap(?:ping)?|whip(?:ping)?|burn(?:ing)?|electrocut(?:e|ing)|mutilat(?:e|ing)|impal(?:e|ing)
        |starv(?:e|ing)|castrat(?:e|ing)|skin(?:ning)?|knif(?:e|ing)|abus(?:e|ing)|get(?:ting)? \s+ (?:rid|back
        |revenge|even) \s+ (?:of|at|on|with)|sabotag(?:e|ing)|fram(?:e|ing)|drug(?:ging)?|lock(?:ing)? \s+ up
        |trap(?:ping)?|imprison(?:ing)?|ruin(?:ing)?|slash(?:ing)?|saw(?:ing)?|hammer(?:ing)?|break(?:ing)? \s+ open
        |destroy(?:ing)?|bomb(?:ing)?|blow(?:ing)? \s+ up|headshot|knockout \s+ punch|beat(?:ing)? \s+ up
        |run(?:ning)? \s+ over|push(?:ing)?|groom(?:ing)?|enslav(?:e|ing)|traffic(?:king)?|lynch(?:ing)?) {_NEAR}
        {_WHOM}\b
        | \b(?:plan|carry \s+ out|commit|conduct|organi[sz]e|execute|stage|justify|promot\w+|incit\w+|encourag\w+
        |glorif\w+) (?:\s+ [\w'-]+){{0,4}}? \s+ (?:murders?|massacres?|terroris[mt]\w*|genocide|mass \s+ shootings?
        |school \s+ shootings?|bombings?|assassinations?|kidnappings?|violence|arson|hate \s+ crimes?)\b
        | \b(?:bomb(?:ing)?|blow(?:ing)? \s+ up|burn(?:ing)? \s+ down|demolish(?:ing)?|set(?:ting)? (?:\s+
        [\w']+){{1,3}}? \s+ on \s+ fire) (?:\s+ [\w'-]+){{0,4}}? \s* \b(?:house|home|building|hospital|school|church
        |mosque|synagogue|airport|stadium|base|embassy|fire)\b
        | \b(?:set(?:ting)?|light(?:ing)?) \s+ (?!off\b)(?:an? \s+|the \s+|my \s+)? (?:[\w-]+ \s+){{0,2}}? (?:house|home
        |building|hospital|school|church|mosque|synagogue|car|bus|train|forest|shop|office|hotel|village) \s+ (?:on \s+
        fire|ablaze|alight)\b
        | \bdeath \s+ threats?\b
        | \b(?:break(?:ing)?|cut(?:ting)? \s+ off|chop(?:ping)? \s+ off|slit(?:ting)?|gouge|rip(?:ping)? \s+ out) \s+
        (?:someone's|somebody's|a \s+ (?:person|man|woman|child|kid)'s|his|her|their|my \s+ \w+'s) \s+ (?:arms?|legs?
        |necks?|fingers?|hands?|throats?|eyes?|heads?|bones?|spines?)\b
        | \b(?:dispose|get \s+ rid) \s+ of \s+ (?:(?:an?|the|my|our|this|dead|human|stolen) \s+)* (?:body|bodies
        |corpses?|baby|remains)\b
        | \b(?:saw(?:ing)?|cut(?:ting)?|chop(?:ping)?|dissolv(?:e|ing)|hid(?:e|ing)|bury(?:ing)?) \s+ (?:(?:an?|the|my
        |dead|human) \s+)+ (?:body|bodies|corpses?)\b
        | \bheadshots? \b [^.!?\n]{{0,20}} \b(?:gun|rifle|pistol|sniper|weapon)\b""",
        _TOLD,
    ),
    rule(
        "harm to oneself",
        r"""\b(?:kill|hang|cut|hurt|harm|starve|drown|poison|burn|shoot) \s+ (?:my|your|one)sel(?:f|ves)\b
        | \bhow \b [^.!?\n]{0,40}? \bhang \s+ myself\b
        | \b(?:commit(?:ting)?|attempt|encourag\w+|promot\w+|method\w* \s+ of) (?:\s+ \w+){0,3}? \s+ (?:suicide
        |self-?harm\w*|self-?injury|anorexia|eating \s+ disorders?)\b
        | \b(?:end|take) \s+ (?:my|your) \s+ (?:own \s+)? life\b
        | \bpainless(?:ly)? \b [^.!?\n]{0,30} \b(?:die|death|suicide)\b
        | \b(?:skip|stop) \s+ eating \b [^.!?\n]{0,20} \bthin\b""",
        _FICTION,
    ),
    rule(
        "a weapon or a drug",
        r"""\b(?:mak(?:e|ing)|build(?:ing)?|creat(?:e|ing)|construct(?:ing)?|synthesi[sz](?:e|ing)|cook(?:ing)?
        |produc(?:e|ing)|manufactur(?:e|ing)|assembl(?:e|ing)|buy(?:ing)?|sell(?:ing)?|smuggl(?:e|ing)|grow(?:ing)?
        |obtain(?:ing)?|acquir(?:e|ing)|get(?:ting)?|traffic(?:king)?|detonat(?:e|ing)|plant(?:ing)?|deal(?:ing)?
        |us(?:e|ing)|print(?:ing)?|promot\w+|glorif\w+) (?:\s+ [\w'-]+){0,4}? \s+ (?:(?<!bath\ )(?<!photo\ )bombs?
        |explosives?|grenades?|molotov\w*|nerve \s+ (?:gas|agents?)|ricin|anthrax|sarin|napalm|(?:biological
        |chemical|nuclear|illegal|untraceable|homemade|ghost) \s+ (?:weapons?|guns?|firearms?)|crystal \s+ meth
        |meth(?:amphetamine)?s?|cocaine|heroin|lsd|mdma|fentanyl|ketamine|crack|mari[jh]uana|(?<!to\ )weed(?!\ my
        |\ the)|ecstasy|shrooms|magic \s+ mushrooms|steroids|opioids|opium|(?:illegal|hard|party) \s+ drugs|drugs
        |illicit \s+ substances?|counterfeit \s+ (?:\w+))\b""",
        _FICTION,
    ),
    rule(
        "theft, fraud or another crime",
        r"""\b(?:rob(?:bing)?|burgl\w+|shoplift(?:ing)?|embezzl\w+|launder(?:ing)? | hot-?wir(?:e|ing)|pickpocket\w*
        |defraud\w*|vandali[sz]\w+|(?:set|setting) \s+ fire \s+ to|counterfeit(?:ing)?|brib(?:e|ing)|scam(?:ming)?
        |phish(?:ing)?|swindl\w+) \s+ (?!\w+ing\b)(?:\w|\$)
        | \bsteal(?:ing)? \s+ (?!(?:\w+ \s+){0,2}?(?:hearts?|show|kiss|glance|scene|thunder|spotlight|base|second
        |look)\b) \w
        | \b(?:forg(?:e|ing)|fak(?:e|ing)|falsify\w*|mak(?:e|ing)|creat(?:e|ing)|obtain\w*|us(?:e|ing)) (?:\s+
        \w+){0,3}? \s+ (?:fake|forged|false|counterfeit|stolen) (?:\s+ \w+){0,1}? \s+ (?:money|ids?|identit\w+
        |passports?|documents?|cards?|reviews?|bills?|cheques?|checks?|currency|certificates?|prescriptions?
        |invoices?|credentials?)\b
        | \b(?:set(?:ting)? \s+ up|start(?:ing)?|run(?:ning)?|join(?:ing)?|organi[sz](?:e|ing)|creat(?:e|ing)) (?:\s+
        \w+){0,3}? \s+ (?:human \s+ trafficking|money \s+ laundering|dog \s+ fighting|extortion|drug|smuggling|slavery
        |terror\w*|prostitution|counterfeit\w*|protection) \s+ (?:operation|ring|scheme|gang|business|network|cell|group
        |organi[sz]ation|racket)s?\b
        | \b(?:commit(?:ting)?|get(?:ting)? \s+ away \s+ with|engag\w+ \s+ in|cover(?:ing)? \s+ up) (?:\s+ \w+){0,3}?
        \s+ (?:crimes?|fraud|identity \s+ theft|theft|tax \s+ evasion|insider \s+ trading|arson|murder|robbery
        |forgery|perjury|bribery|burglary|money \s+ laundering|plagiarism|blackmail|extortion|cheating|rape|treason
        |assault|human \s+ trafficking)\b
        | \b(?:evad(?:e|ing)|avoid(?:ing)? \s+ paying|cheat(?:ing)? \s+ on) \s+ (?:\w+ \s+){0,2}? (?:tax(?:es)?|law
        \s+ enforcement|police)\b
        | \b(?:break(?:ing)? \s+ in(?:to)? \b (?!(?:\s+ \w+){0,3}? \s+ (?:industry|business|market|song|tears|field
        |laughter|run|groups?|parts?|pieces))|disabl(?:e|ing) \s+ (?:the \s+|an \s+)? alarm|pick(?:ing)? \s+ (?:a \s+
        |the \s+)? lock \s+ of)\b
        | \b(?:insider \s+ trading|ponzi|pyramid \s+ scheme|money \s+ laundering|identity \s+ theft)\b [^.!?\n]{0,40}
        \b(?:how|guide|scheme|tutorial|undetected|successful\w*)\b
        | \b(?:rig|manipulat(?:e|ing)|tamper\w* \s+ with|hack\w*) \s+ (?:\w+ \s+){0,3}? (?:elections?|votes?|voting
        |evidence|stock \s+ market)\b""",
        _TOLD,
    ),
    rule(
        "an attack on computers or accounts",
        r"""\b(?:hack(?:ing)?|crack(?:ing)?|hijack(?:ing)?|compromis(?:e|ing)|infiltrat(?:e|ing)|exploit(?:ing)?
        |ddos) (?:\s+ in(?:to)?)? (?:\s+ [\w'-]+){0,4}? \s+ (?:accounts?|phones?|e-?mails?|computers?|websites?
        |servers?|systems?|networks?|wi-?fi|banks?|databases?|passwords?|webcams?|cameras?|devices?|routers?
        |governments?|hospital|vulnerabilit\w+|software)\b
        | \b(?:writ(?:e|ing)|creat(?:e|ing)|develop(?:ing)?|mak(?:e|ing)|build(?:ing)?|install(?:ing)?|plant(?:ing)?
        |spread(?:ing)?|deploy(?:ing)?|design(?:ing)?|distribut(?:e|ing)|send(?:ing)?|cod(?:e|ing)) (?:\s+
        [\w'-]+){0,4}? \s+ (?:(?<!anti-)virus(?:es)?|malware|ransomware|key-?loggers?|spyware|trojans?|rootkits?
        |botnets?|backdoors?|worms?|phishing|exploits?)\b
        | \b(?:gain(?:ing)?|get(?:ting)?) \s+ (?:unauthori[sz]ed|illegal) \s+ access\b
        | \b(?:steal|harvest|intercept)\w* (?:\s+ \w+){0,4}? \s+ (?:data|information|credentials|passwords
        |identit\w+)\b""",
        _FICTION,
    ),
    rule(
        "hatred of a group",
        rf"""\b(?:why|how|explain|prove|argue|reasons?) \b [^.!?\n]{{0,50}}? \b{_GROUPS}\b [^.!?\n]{{0,40}}?
        \b(?:inferior|superior|stupid|dumb|lazy|subhuman|not \s+ (?:be \s+)? (?:allowed|permitted|welcome|trusted|hired
        |able|have|vote|deserve|marry|adopt|work|teach)|banned|deported|segregated|fired|killed|eliminated|exterminated|kicked
        |discriminated|(?:so \s+ much|naturally|inherently|generally) \s+ \w+ \s+ than|less \s+ (?:\w+ly \s+)?
        (?:intelligent|valuable|human|worthy|capable|fit|smart|competent|reliable|trustworthy)|dirty|evil|violent
        |criminals?|(?:voting|civil|human|equal) \s+ rights|not \s+ to \s+ have|exaggerate\w*|overstate\w*|shouldn't
        |should \s+ not|don't \s+ deserve|denied|excluded|paid \s+ less|all \s+ (?:major|important) \s+ decisions)\b
        | \b(?:best|better|good|right|natural) \s+ (?:for \s+ \w+ \s+)? (?:that|if|when|for) \s+ {_GROUPS} \s+
        (?:make|do|are|stay|have|earn|get|rule|lead|obey|not)\b
        | \b(?:racist|sexist|homophobic|transphobic|antisemitic|anti-semitic|xenophobic|hateful|derogatory
        |discriminatory|offensive) (?:\s+ \w+){{0,2}}? \s+ (?:jokes?|speech|slurs?|tweets?|posts?|articles?|memes?
        |messages?|essays?|language|comments?|propaganda|content|remarks?|poems?|songs?|stereotypes?|manifesto)\b
        | \b(?:discriminat(?:e|ing)|hatred|hate|prejudice|violence|slurs?) \s+ (?:against|towards?|about) \s+
        (?:[\w-]+ \s+){{0,3}}? (?:{_GROUPS}|people|groups?|individuals?|communit\w+)\b""",
    ),
    rule(
        "praise or denial of an atrocity",
        r"""\b(?:holocaust|genocides?|slavery|slave \s+ trade|massacres?|apartheid|9/11|september \s+ 11\w*|(?:mass
        |school|nightclub) \s+ shootings?|terror\w* \s+ attacks?|lynchings?|ethnic \s+ cleansing)\b [^.!?\n]{0,40}?
        \b(?:justified|(?:was|were|is) \s+ (?:a \s+)? (?:good|right|great|hoax|myth|lie|fake\w*|necessary)|did(?:n't
        | \s+ not) \s+ happen|hoax|deserved|exaggerat\w*|overstat\w*|funny|never \s+ (?:took|happened)|(?:actually
        |morally) \s+ \w+)\b
        | \b(?:benefits|advantages|upsides?) \s+ of (?:\s+ \w+){0,3}? \s+ (?:genocide|slavery|slave \s+ trade|ethnic
        \s+ cleansing|apartheid)\b
        | \b(?:den(?:y|ying)|celebrat(?:e|ing)|replicat(?:e|ing)|recreat(?:e|ing)|repeat(?:ing)?|imitat(?:e|ing)
        |copy(?:ing)?) (?:\s+ [\w']+){0,5}? \s+ (?:holocaust|genocide|massacres?|(?:terror\w* \s+)? attacks?
        |shootings?|bombings?|atomic \s+ bombs?)\b
        | \bwhy \s+ (?:was|were|is|are) \s+ (?:[\w.'-]+ \s+){1,4}? (?:(?:morally|completely|so|actually) \s+)? (?:right
        |justified|correct|a \s+ hero|heroic|great|admirable) \s+ (?:to|in|for) \s+ (?:[\w-]+ \s+)? (?:attack|invad
        |kill|murder|bomb|massacr|shoot|assassinat|execut|persecut|oppress|enslav|deport|exterminat|behead|tortur
        |rap|colon|occup)\w*
        | \b(?:die|death|go(?:ing)? \s+ out|end \s+ (?:up|it)|overdose|disappear) \s+ (?:just \s+|exactly \s+)? like \s+
        [A-Z]\w+
        | \b(?:plan|stage|commit|organi[sz]e|do|start|pull \s+ off) \s+ (?:an?other|a \s+ second|a \s+ new|the \s+ next)
        \s+ (?:\w+ \s+){0,3}? (?:deaths?|attacks?|assassinations?|shootings?|massacres?|genocides?|holocaust|bombings?
        |9/11|columbine|wars?|purges?|cults?)\b
        | \bgood \s+ (?:about|side \s+ of|things? \s+ about) \b [^.!?\n]{0,20} \b(?:holocaust|genocide|slavery
        |apartheid|nazi\w*)\b""",
    ),
    rule(
        "someone's private data",
        rf"""\b(?:my|our|his|her|their|someone(?:'s)?|somebody(?:'s)?) \s+ (?:[\w-]+ \s+){{0,2}}? (?:{_RELATIVE}
        |[\w-]+)? (?:'s|s')? \s* (?:[\w-]+ \s+){{0,3}}? \b(?:social \s+ security \s+ numbers?|ssn|medical \s+
        (?:records?|history)|(?:home|private) \s+ address(?:es)?|private \s+ (?:e-?mails?|phones?|messages?|photos?
        |data)|passport \s+ numbers?|bank \s+ (?:details|account)|credit \s+ card)\b
        | \b(?:my|our) \s+ (?:[\w-]+ \s+){{0,2}}? {_RELATIVE} (?:'s|s') \s+ (?:[\w-]+ \s+){{0,3}}? (?:mobile|date \s+
        of \s+ birth|passwords?|salary|address|e-?mails?|phone|sexual \s+ orientation|immigration \s+ status|marital
        \s+ status|(?:mental \s+)? health|religious \s+ \w+|political \s+ \w+|browsing \s+ history|location
        |income)\b
        | \b(?:celebrit(?:y|ies)|politicians?|strangers?|neighbou?rs?|employees?|students?|patients?|customers?|women
        |people|girls?|boys?|someone|somebody) (?:'s|s?')? \s+ (?:(?:private|personal|secret|medical|home|real|leaked
        |nude) \s+)+ \w+
        | \bhow \s+ much \b [^.!?\n]{{0,15}} \b(?:does|do|did) \s+ (?:my|our|his|her) \s+ (?:[\w-]+ \s+){{0,2}}?
        {_RELATIVE} \s+ (?:\w+ \s+)? (?:earn|make|weigh|owe|pay|get \s+ paid|have \s+ in)\b
        | \b(?:dox+(?:ing)?|doxx?) \b
        | \b(?:spy(?:ing)? \s+ on|track(?:ing)?|wiretap\w*) \s+ (?:my|your|his|her|their|someone|an?) (?:'s)? \s+
        (?:[\w-]+ \s+){{0,2}}? {_RELATIVE}\b""",
    ),
    rule(
        "an act that must not be seen",
        r"""\b(?:illegal(?:ly)?|unlawful(?:ly)?|without \s+ (?:getting \s+ caught|being \s+ (?:caught|detected
        |noticed|seen)|(?:his|her|their) \s+ (?:consent|knowledge|permission)|a \s+ (?:licen[cs]e|prescription
        |permit)|paying)|undetect(?:ed|able|ably)|untraceabl[ey])\b""",
        r"""(?:\b|')(?:s|is|are|was|were|be|why|report(?:ing)?|prevent(?:ing)?|avoid(?:ing)?|becomes?|considered) \s+
        (?:[\w'-]+ \s+){0,4}? (?:illegal|unlawful)""",
    ),
    rule(
        "deception of many",
        r"""\b(?:spread\w*|creat\w+|writ\w+|publish\w*|produc\w+|promot\w+|generat\w+|design\w*|develop\w*|us(?:e
        |ing)) (?:\s+ [\w'-]+){0,6}? \s+ (?:fake \s+ news|misinformation|disinformation|false \s+ (?:information
        |rumou?rs?|claims?)|conspiracy \s+ theor\w+|(?:fake|false|misleading|deceptive) \s+ (?:ads?|advertis\w+
        |articles?|campaigns?|products?|websites?|charit\w+|videos?))\b
        | \b(?:child|underage) \s+ (?:porn\w*|sexual|erotic\w*)\b
        | \bsexuali[sz]\w* (?:\s+ \w+){0,2}? \s+ (?:minors?|child\w*)\b""",
    ),
)
