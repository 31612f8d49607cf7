#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Small templates with what Jinja itself makes of them: cases.jsonl.  Its first line is
{"variables"}, which all cases see; every other one {"source", "rendered"} or {"source", "error"}.

The environment is that of transformers' apply_chat_template: trim_blocks, lstrip_blocks, immutable
sandbox, loopcontrols, tojson without escaping, raise_exception, {% generation %}.

needs: jinja2 (made with 3.1.6, Python 3.11)     usage: make.py > cases.jsonl
"""
import json

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception

VARIABLES = {
    "s": "Hello, Wörld", "t": "  padded\n", "u": "你好 😀!", "e": "", "n": None, "yes": True, "no": False,
    "i": 7, "neg": -7, "f": 2.5, "big": 9007199254740993, "l": [3, 1, 2], "words": ["b", "A", "c", "a"],
    "d": {"a": 1, "items": 2, "z": {"k": "v"}, "list": [1, 2.5, None, True, "q'q"]}, "empty": [], "none_list": [None],
    "people": [{"name": "Bo", "age": 5}, {"name": "al", "age": 3}, {"name": "Cy", "age": 5, "tags": ["x"]}],
    "quotes": ["it's", 'say "hi"', "both ' and \"", "tab\there\n", "\u00e9\u200b\u2028\U0001f600\x01\x7f"],
    "floats": [1.0, -0.0, 0.1, 1e15, 1e16, 1.5e-5, 0.0001, 123456789.125, 1e100, 3.14159265358979, 5e-324, 1.7976931348623157e308],
}

EXPRESSIONS = r"""
s | t | u | n | yes | i | f | neg | l | d | floats | quotes | empty | none_list | people
1 + 2 ; 7 // 2 ; -7 // 2 ; 7 // -2 ; -7 % 3 ; 7 % -3 ; 7.5 // 2 ; -7.5 % 2 ; 7 / 2 ; 6 / 3 ; 2 ** 10 ; 2 ** -1 ; -2 ** 2 ; 2 ** 3 ** 2 ; 2.0 ** 0.5 ; 1_000 ; 0x1F ; 0b101 ; 0o17 ; 1e3 ; 1.5e-3
1 / 0 ; 1 // 0 ; 1 % 0 ; 1.0 / 0 ; 1.0 // 0 ; 1.0 % 0 ; 0 ** -1
-i ; +i ; - -i ; -f ; +yes ; -yes ; yes + yes ; yes * 3 ; i - f ; i * f ; f ** 2 ; big + 1 ; big * 2 ; big / 1 ; big == 9007199254740992.0 ; big > 9007199254740992.0
"a" + "b" ; "a" ~ 1 ~ none ~ true ~ 1.0 ; "ab" * 3 ; 3 * "ab" ; "ab" * -1 ; [1] * 2 ; (1,) + (2,) ; [1] + [2, 3] ; "a" + 1 ; 1 + "a" ; [1] + (2,) ; none + 1 ; "a" - "b" ; {} + {} ; "a" "b" 'c'
1 == 1.0 ; 1 == true ; "1" == 1 ; [1, 2] == [1, 2.0] ; (1, 2) == [1, 2] ; {"a": 1, "b": 2} == {"b": 2, "a": 1} ; none == none ; none == false ; undefined_a == undefined_b ; 1 != 2 ; "a" < "b" ; "Z" < "a" ; [1, 2] < [1, 3] ; (1,) < (1, 0) ; 1 < 2 < 3 ; 1 < 3 < 2 ; 1 < 2 > 1 ; 3 > 2 == true ; 1 < "a" ; none < 1 ; [] < 1 ; "é" < "z" ; 1 <= 1.0 ; true < 2
1 in [1, 2] ; 1.0 in [1] ; "a" in "cat" ; "" in "" ; 1 in "a" ; "a" in {"a": 1} ; 1 in {"a": 1} ; [1] in [[1]] ; 3 not in l ; not 3 in l ; "a" in undefined_x ; 1 in 5 ; 1 in none ; (1, 2) in [(1, 2)] ; [1] in {"a": 1}
not "" ; not [] ; not {} ; not 0.0 ; not none ; not undefined_x ; yes and no ; yes and "x" ; "" or "y" ; 0 or [] ; 1 and 2 or 3 ; not yes or yes ; not (yes and no) ; yes if no else n ; "a" if yes ; "a" if no ; 1 if yes else 2 if yes else 3 ; (1 if no else 2) + 1
s[0] ; s[-1] ; s[8] ; s[99] ; u[0] ; u[3] ; u[-2] ; s[1:4] ; s[:-1] ; s[::-1] ; s[::2] ; s[-3:] ; s[5:2] ; s[99:] ; s[-99:3] ; u[1:4] ; u[::-1] ; s[4:1:-1] ; s[:1:-2] ; s[::0] ; l[::-1] ; l[1:] ; l[:-1] ; l[-2:] ; l[::2] ; l[5:] ; (1, 2, 3)[1:] ; l[0] ; l[-1] ; l[3] ; l["x"] ; l[true] ; l[none] ; d["a"] ; d["zz"] ; d.a ; d.zz ; d.z.k ; d["z"]["k"] ; d.list[4] ; d["items"] ; d.zz.y ; n.x ; undefined_x.y ; undefined_x["y"] ; i.foo ; l.0 ; d.list.1 ; l[1.0] ; s[1.5:2] ; range(5)[1] ; range(5)[1:3] ; range(5)[::-1]
undefined_x ; undefined_x ~ "a" ; undefined_x + 1 ; undefined_x() ; undefined_x | length ; undefined_x | list ; undefined_x | upper ; undefined_x | tojson ; undefined_x is defined ; d.zz is defined ; undefined_x == none ; undefined_x < 1 ; [undefined_x] ; undefined_x | default("D") ; n | default("D") ; n | default("D", true) ; e | default("D", true) ; e | d("D") ; undefined_x.y is defined ; undefined_x | first ; -undefined_x ; undefined_x | join("-") ; undefined_x | int
[1, "a", 1.5, none, true, [], {}, (), (1,), {"k": "v"}] ; (1, 2) ; () ; (1,) ; {"a": [1, {"b": 2}]} ; {1: 2, 1.5: 3, none: 4, true: 5} ; {1: "a"}[true] ; {"a": 1, "a": 2} ; range(3) ; range(1, 10, 3) ; range(5, 0, -2) ; range(3) | list ; range(0) | list ; range(1, 10, 3) | list ; range(5, 0, -2) | list ; range(200000) ; range(1, 2, 0) ; {[1]: 2}
d.keys() ; d.values() | list ; d.items() | list ; {"a": 1}.items() ; {"a": 1}.values() ; {"a": 1}.keys() | list ; d.get("a") ; d.get("zz") ; d.get("zz", "D") ; d.get("zz") is none ; d.items() | length ; d.get() ; d.keys()[0] ; d | length ; d | list ; d.copy() | length ; d.pop("a") ; l.append(4) ; l.sort ; s.__class__ ; s.__class__.__mro__ ; l.index(1) ; l.count(1) ; l.index(9) ; d.update({}) is defined
s.upper() ; s.lower() ; s.title() ; s.capitalize() ; s.swapcase() ; "it's o'neil-x a_b 3d".title() ; "straße ﬁ".upper() ; "ΑΣ ΟΔΟΣ".lower() ; "ÀÉ".lower() ; "ŉ".upper() ; "ǆ".title() ; "İ".lower() ; "HELLO world".capitalize()
t.strip() ; t.lstrip() ; t.rstrip() ; t.rstrip("\n") ; "xxaxx".strip("x") ; "xyaxy".strip("yx") ; "\u3000a\u00a0".strip() ; "abc".strip("") ; s.startswith("He") ; s.startswith(("x", "He")) ; s.endswith("ld") ; s.endswith(("a", "b")) ; s.startswith("l", 2) ; s.endswith("o", 0, 5) ; s.startswith(1) ; s.startswith("") ; "".startswith("", 1)
"a,b,,c".split(",") ; "a,b,,c".split(",", 1) ; " a  b c ".split() ; " a  b c ".split(none, 1) ; "a,b,c".rsplit(",", 1) ; " a  b c ".rsplit(none, 1) ; "".split() ; "".split(",") ; "abc".split("") ; "a</think>b".split("</think>")[-1] ; "a\nb\r\nc\n".splitlines() ; "a\nb".splitlines(true) ; "".splitlines() ; "a-b-c".partition("-") ; "a-b-c".rpartition("-") ; "abc".partition("-") ; "abc".rpartition("-") ; "a b".split(" ", -1) ; "aXbXc".split("X", maxsplit=1) ; "a b c".split(maxsplit=1)
"hello".replace("l", "L") ; "hello".replace("l", "L", 1) ; "abc".replace("", "-") ; "abc".replace("", "-", 2) ; "aaa".replace("aa", "b") ; "hello".find("l") ; "hello".rfind("l") ; "hello".find("z") ; "hello".index("z") ; "hello".count("l") ; "aaaa".count("aa") ; "abc".count("") ; "héllo".find("l") ; "hello".find("l", 3) ; "hello".find("l", 0, 2) ; "héllo".rfind("l", -2) ; "hello".find("", 9) ; "-".join(["a", "b"]) ; "-".join("abc") ; "-".join([1]) ; "".join([])
"abc".isalpha() ; "ab1".isalnum() ; "12".isdigit() ; "²".isdigit() ; "½".isnumeric() ; "1.5".isdigit() ; "".isdigit() ; " \t".isspace() ; "Ab".isupper() ; "AB1".isupper() ; "ab!".islower() ; "1".islower() ; "你".isalpha() ; "é".isascii() ; "٣".isdecimal()
"a".ljust(4) ~ "|" ; "a".rjust(4, "*") ; "a".center(4) ~ "|" ; "ab".center(5, "-") ; "abc".center(6, "-") ; "a".center(2, "-") ; "-5".zfill(4) ; "5".zfill(3) ; "x".removeprefix("x") ; "abc".removeprefix("ab") ; "abc".removesuffix("bc") ; "abc".removesuffix("z") ; "a".ljust(4, "ab")
"{} {}".format(1, "a") ; "{0}{1}{0}".format("x", "y") ; "{name}!".format(name="Bo") ; "{{}}".format() ; "{:>5}|{:<4}|{:^5}".format("a", "b", "c") ; "{:.2f}".format(3.14159) ; "{:05d}".format(42) ; "{:+d}".format(5) ; "{:x}".format(255) ; "{}".format() ; "{:5}|".format(42) ; "{:>6.1f}".format(2.25) ; "{:.3}".format("abcdef") ; "{".format() ; "{:d}".format("a")
"%s-%s" % (1, "a") ; "%s" % "x" ; "%d%%" % 5 ; "%05.1f|" % 3.14159 ; "%-5s|" % "a" ; "%5s|" % "a" ; "%+d" % 5 ; "%x" % 255 ; "%r" % "it's" ; "%s" % [1, "b"] ; "%(a)s" % {"a": 1} ; "%s %s" % ("a",) ; "%s" % ("a", "b") ; "%d" % "a" ; "%d" % 3.99 ; "%.3s|" % "abcdef" ; "%e" % 12345.678 ; "%g" % 0.00001 ; "%03d" % -5 ; "%q" % 1 ; "%" % 1 ; "%s %s" | format("a", "b") ; "%(x)s" | format(x=1) ; "%i" % true ; "%X" % 255 ; "%o" % 8
s | upper ; s | lower ; s | title ; s | capitalize ; "foo-bar (baz) [q] it's" | title ; s | length ; u | length ; s | first ; s | last ; s | reverse ; s | list ; t | trim ; "xxaxx" | trim("x") ; 5 | string ; s | replace("l", "L") ; s | replace("l", "L", 1) ; 123 | replace(2, "x") ; s | wordcount ; "a b_c, d" | wordcount ; "a" | center(5) ~ "|" ; "<b>&\"'" | escape ; "<b>" | e | e ; "<b>" | safe ; ("<b>" | safe) + "<i>" ; "<i>" + ("<b>" | safe) ; ("<b>" | safe) ~ "<i>" ; ["<b>" | safe] ; "<" | forceescape ; ("<" | e) | upper ; ("a" | safe) is string ; ("a" | safe) is escaped
"a\nb\n\nc" | indent ; "a\nb" | indent(2) ; "a\nb" | indent(2, true) ; "a\n\nb" | indent(2, blank=true) ; "a\nb\n" | indent ; "a\nb" | indent("> ") ; "" | indent ; "\n" | indent(first=true) ; "abc def ghi jkl" | truncate(10) ; "abc def ghi jkl mno" | truncate(10) ; "abc def ghi jkl mno" | truncate(10, true) ; "abc def ghi jkl mno" | truncate(10, true, "") ; "abc def" | truncate(3, leeway=0) ; "abc" | truncate(2)
"42" | int ; "4x" | int ; "4x" | int(9) ; " -42 " | int ; "0x1A" | int(0, 16) ; "1A" | int(0, 16) ; "42.9" | int ; 3.9 | int ; -3.9 | int ; true | int ; none | int ; "1_000" | int ; "0b11" | int(0, 2) ; "" | int ; "1e3" | int ; [] | int(5) ; "1.5" | float ; "x" | float ; "x" | float(2.5) ; " 1e3 " | float ; 3 | float ; true | float ; "inf" | float ; "-Infinity" | float ; "nan" | float ; none | float ; "." | float ; "1_0.5" | float ; "0x10" | int(base=0) ; "１２" | string
2.5 | round ; 3.5 | round ; 2.675 | round(2) ; 2.5 | round(0, "ceil") ; 2.5 | round(method="floor") ; 42.55 | round(1) ; 1234.5 | round(-2) ; 3 | round ; 2.4 | round | int ; -5 | abs ; -2.5 | abs ; true | abs ; "a" | abs ; 7 | round(1, "ceil") ; 0.5 | round ; 1e22 | round ; 2.5 | round(1)
l | sort ; words | sort ; words | sort(case_sensitive=true) ; words | sort(reverse=true) ; l | min ; l | max ; words | min ; words | max ; empty | min ; empty | first ; empty | last ; empty | max is undefined ; l | sum ; people | sum(attribute="age") ; [1.5, 2] | sum ; l | sum(start=10) ; people | sort(attribute="age") | map(attribute="name") | join(",") ; people | sort(attribute="age,name") | map(attribute="name") | join(",") ; people | sort(attribute="name") | map(attribute="name") | list ; people | sort(attribute="age", reverse=true) | map(attribute="name") | list ; people | max(attribute="age") ; people | min(attribute="age") ; [1, "a"] | sort ; words | unique | list ; words | unique(true) | list ; people | unique(attribute="age") | map(attribute="name") | list ; [[1], [1]] | unique | list ; l | reverse | list ; d | dictsort | length ; {"b": 1, "A": 2} | dictsort ; {"b": 1, "A": 2} | dictsort(true) ; {"b": 1, "A": 2} | dictsort(by="value") ; {"b": 1, "A": 2} | dictsort(reverse=true) ; 5 | sum ; 5 | list ; none | length ; 5 | length ; l | map("string") | join ; l | map("upper") | list ; ["a"] | map("replace", "a", "b") | list ; people | map(attribute="tags") | list ; people | map(attribute="tags", default=[]) | list ; people | map(attribute="tags.0") | list ; l | map | list
people | selectattr("age", "equalto", 5) | map(attribute="name") | list ; people | selectattr("tags") | list | length ; people | selectattr("tags", "defined") | list | length ; people | rejectattr("tags", "defined") | list | length ; people | rejectattr("age", "gt", 4) | map(attribute="name") | list ; l | select("odd") | list ; l | reject("odd") | list ; l | select("gt", 1) | list ; [0, 1, "", "a", none] | select | list ; [0, 1] | reject | list ; l | select("in", [1, 2]) | list ; people | selectattr("name", "in", ["al"]) | list | length ; l | select("divisibleby", 3) | list ; l | select("nonsense") | list ; undefined_x | selectattr("a") | list ; l | batch(2) | list ; l | batch(2, "x") | list ; l | slice(2) | list ; range(7) | slice(3, "x") | list ; l | join ; l | join(", ") ; people | join("-", attribute="name") ; "abc" | join("-") ; d | items | list | length ; undefined_x | items | list ; l | items | list ; d | items | first ; l | first ; l | last ; d | first ; d | last ; l | list ; l | length ; (l | map("string")) | length ; l | select | first ; l | map("string") | last ; (s | attr("upper"))() ; d | attr("a")
d | tojson ; l | tojson ; s | tojson ; u | tojson ; u | tojson(ensure_ascii=true) ; n | tojson ; yes | tojson ; f | tojson ; floats | tojson ; quotes | tojson ; d | tojson(indent=2) ; empty | tojson(indent=2) ; {} | tojson(indent=4) ; (1, 2) | tojson ; {"b": 1, "a": 2} | tojson(sort_keys=true) ; {"b": 1} | tojson(separators=(",", ":")) ; {1: 2, none: 3, true: 4, 1.5: 5} | tojson ; "</script>&'" | tojson ; range(2) | tojson ; {(1, 2): 3} | tojson ; [[], {}, [[]]] | tojson(indent=1) ; l | tojson(indent="--") ; l | tojson(indent=0) ; "\u2028\x7f\x00\b\f" | tojson ; "\u2028\x7f😀" | tojson(ensure_ascii=true) ; "nan" | float | tojson ; namespace() | tojson
s is string ; n is none ; i is number ; yes is number ; f is number ; i is integer ; yes is integer ; f is float ; yes is boolean ; l is sequence ; s is sequence ; d is sequence ; d is mapping ; l is mapping ; l is iterable ; s is iterable ; d is iterable ; i is iterable ; undefined_x is iterable ; undefined_x is sequence ; undefined_x is undefined ; n is defined ; yes is true ; 1 is true ; no is false ; 0 is false ; i is odd ; i is even ; 6 is divisibleby 3 ; 6 is divisibleby(4) ; "a" is lower ; "A" is upper ; 1 is eq 1 ; 1 is equalto 1.0 ; 1 is ne 2 ; 1 is lt 2 ; 2 is gt 1 ; 1 is le 1 ; 1 is ge 2 ; 1 is in [1] ; "a" is in "cat" ; n is not none ; i is not odd ; n is sameas none ; yes is sameas true ; 1 is sameas true ; l is callable ; s.upper is callable ; "upper" is filter ; "nope" is filter ; "odd" is test ; i is defined and i is odd ; not i is odd ; i is odd if yes else 1 ; l is sequence or no ; range is callable ; range(3) is sequence ; d.items() is sequence ; l | map("string") is sequence ; (l | map("string")) is iterable ; (1, 2) is sequence ; 1.0 is even ; "a" is odd ; "1" is divisibleby 1 ; l is defined == true ; i is odd is even ; s is nonsense
s | nonsense ; s.nonsense ; s.nonsense() ; d.nonsense() ; l.startswith("a") ; n.strip() ; i.strip() ; d.z.zz.q ; 5() ; s() ; l() ; raise_exception("boom") ; raise_exception("") ; foo("x") ; s.upper(1) ; s.replace("a") ; s | replace("a") ; s | upper(1) ; d.get(a=1) ; s | default(nope=1) ; range() ; range("a") ; range(1.5) ; namespace(1)
dict(a=1, b=2) ; dict() ; dict([("a", 1)]) ; dict({"a": 1}, b=2) ; namespace(a=1).a ; namespace(a=1).b ; namespace(a=1)["a"] ; namespace(a=1)
'a\nb' ; "a\tb\\" ; 'it\'s' ; "\x41\u00e9\U0001F600" ; "\101\0" | length ; "a\qb" ; "\
x" ; "é" ; '' ; "a'b" ; 'a"b'
1, 2 ; 1, ; (1, 2), 3 ; s | upper | lower | length ; -i | abs ; -1 | abs ; (-1) | abs ; -2.5 | abs | string ; not i in l ; 1 + 2 ~ 3 ; 2 * 3 ~ 4 ; 1 ~ 2 * 3 ; "a" ~ "b" == "ab" ; 1 if 1 == 1 and 2 > 1 else 0 ; i > 5 and s | length > 3 ; [1, 2][0] + 1 ; {"a": 1}["a"] ; {"a": 1}.a ; "abc"[1] ; "abc".upper()[0].lower() ; (1, 2)[0] ; [l | length, s | upper] ; {"k": l | sum}["k"] ; l[l | length - 1] ; l[-1:][0]
"""

TEMPLATES = [
    # loops
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1,1,2,2,1] %}{{ loop.changed(x) }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}", "{% for x in undefined_x %}a{% else %}none{% endfor %}",
    "{% for x in 5 %}a{% endfor %}", "{% for x in none %}a{% endfor %}", "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, b in [1] %}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{{ loop.length }}{{ loop.last }};{% endfor %}",
    "{% for x in l if x > 9 %}{{ x }}{% else %}nothing{% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% break %}{% else %}else{% endfor %}", "{% for x in l %}{% continue %}{% else %}else{% endfor %}",
    "{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% set ns = namespace(c=0) %}{% for x in range(9) if ns.c < 3 %}{% set ns.c = ns.c + 1 %}{{ x }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}.{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(x) }}{% endfor %}", "{{ loop }}", "{% for x in l %}{{ loop.nope }}{% endfor %}",
    "{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", "{% for x in l | sort | reverse %}{{ x }}{% endfor %}",
    "{% for x in (l if yes else empty) %}{{ x }}{% endfor %}", "{% for i in l %}{{ i }}{% endfor %}{{ i }}",
    # scoping
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = x + 1 %}{{ x }};{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}", "{% if no %}{% set x = 2 %}{% endif %}{{ x is defined }}",
    "{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set ns.x = 1 %}", "{% set d.x = 1 %}", "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set (a, b) = [3, 4] %}{{ a + b }}", "{% set a, b = 1, 2, 3 %}",
    "{% set s = 'local' %}{{ s }}", "{% set x %}a{{ i }}b{% endset %}{{ x }}|{{ x is string }}", "{% set x | upper | replace('A', 'z') %}a{{ i }}b{% endset %}{{ x }}",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y is defined }}", "{% with a = 1, b = i %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}",
    "{% generation %}{% set q = 1 %}{{ q }}{{ i }}{% endgeneration %}{{ q is defined }}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}aa{% endfilter %}", "{% filter upper %}{% set q = 1 %}{% endfilter %}{{ q is defined }}",
    "{% for x in l %}{% set y %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endset %}{{ y }};{% endfor %}",
    # macros
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, 3) }}|{{ m(1, c=9) }}|{{ m(b=5, a=4) }}|{{ m() }}",
    "{% macro m() %}{% endmacro %}{{ m(1) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=1) }}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(1) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{{ a }}{{ varargs | length }}{% endmacro %}{{ m(1, 2, 3) }}",
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}", "{{ m() }}{% macro m() %}a{% endmacro %}",
    "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x is defined }}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}body{{ i }}{% endcall %}", "{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b) m() %}{{ a }}-{{ b }}{% endcall %}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}", "{% macro m() %}x{% endmacro %}{% call m() %}{% endcall %}", "{% macro m(a) %}{{ a | upper }}{% endmacro %}{{ m('x') ~ m('y') | lower }}",
    "{% for q in l %}{% macro m() %}{{ q }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro a() %}{% macro b() %}in{% endmacro %}{{ b() }}{% endmacro %}{{ a() }}{{ b is defined }}",
    "{% macro m(a=undefined_x) %}{{ a is defined }}{% endmacro %}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{% set ns = namespace(f=m) %}{{ ns.f(3) }}",
    "{% macro m(x) %}  {{ x }}  {% endmacro %}{{ m(1) | trim }}{{ m(1) | length }}",
    # statements
    "{% if yes %}a{% elif no %}b{% else %}c{% endif %}{% if no %}a{% elif yes %}b{% endif %}{% if no %}a{% elif no %}b{% else %}c{% endif %}",
    "{% if undefined_x %}a{% else %}b{% endif %}{% if l %}a{% endif %}{% if e or n %}b{% endif %}", "{% print i, s %}", "{% print s %}",
    "{% raw %}{{ x }}{% if %}{# #}{% endraw %}", "a{# comment {{ x }} #}b", "{#- x -#}", "a {#- x -#} b", "{% if yes -%}  a  {%- endif %}",
    # white space
    "a\n", "a\n\n", "\n\na", "a\r\nb\rc\r\n", "  {{ i }}  \n{{ i }}\n", "{% if yes %}\n  a\n{% endif %}\nb", "  {% if yes %}  \n  a\n  {% endif %}  \n  b",
    "{%- if yes -%}\n  a\n{%- endif -%}\nb", "x  {%- if yes %} a {% endif -%}  y", "  {%+ if yes %}a{% endif %}", "{% if yes +%}\na{% endif %}", "a\n  {# c #}\nb", "a\n  {#- c #}\nb", "a\n  {# c -#}\n  b", "a\n  {#+ c +#}\nb",
    "a  {# c #}\nb", "{% raw %}\n  a\n{% endraw %}\nb", "  {% raw -%}  a  {%- endraw %}  \nb", "a\n  {% raw %}x{% endraw %}\n", "a\n  {%- raw %} x {% endraw -%}\n  b", "{% set x = 1 %}\n{% set y = 2 %}\n{{ x }}{{ y }}\n\n",
    "{% for x in l %}\n  {{ x }}\n{% endfor %}\n", "{% for x in l -%}\n  {{ x }}\n{%- endfor %}\n", "{{ i -}}  \n  b", "a \n {{- i }}", "a\t{% if yes %}b{% endif %}", "\t{% if yes %}b{% endif %}\n\t{% if yes %}c{% endif %}",
    "{{'a'}}\n{{'b'}}", "{{- 1 -}}", "{{-1}}", "{{ -1 }}", "{%-set x=1-%} {{x}}", "{{ {'a': {'b': 1}} }}", "{{ {'a':{'b':1}}}}", "{{ '}}' }}", "{{ \"%}\" }}", "{% if '%}' %}a{% endif %}", "{ { } } {", "{", "{{ '{{' }}", "a{%\nif\nyes\n%}b{%endif%}",
    "\u3000{% if yes %}a{% endif %}", "a\u00a0 {%- if yes %}a{% endif %}", "\n  {% if yes %}\n\n  a{% endif %}", "x\n\n   {% if yes %}a{% endif %}   \n\n\ny",
    # errors
    "{{", "{{ }}", "{% if %}", "{% if yes %}", "{% endif %}", "{% nope %}", "{% else %}", "{% for %}", "{% for x in %}{% endfor %}", "{{ 1 + }}", "{{ (1 }}", "{{ 1) }}", "{{ [1 }}", "{{ 'a }}", "{{ a b }}", "{{ 1 2 }}", "{{ a.  }}", "{{ a[ }}",
    "{% set %}", "{% set 1 = 2 %}", "{% set x %}", "{% set true = 1 %}", "{% macro %}", "{% macro m %}{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}", "{# a", "{% raw %}a", "{{ a ! b }}", "{{ $ }}", "{% break %}", "{% continue %}", "{{ f(a=1, 2) }}", "{{ {1} }}", "{{ {1: } }}", "{% for x in l %}{% endif %}",
    "{% if yes %}a{% endfor %}", "{% call s %}{% endcall %}", "{{ 01 }}", "{{ s is }}", "{{ s | }}", "{% if yes }}", "{{ yes %}", "{% macro m() %}{% break %}{% endmacro %}", "{% for x in l %}{% macro m() %}{% continue %}{% endmacro %}{% endfor %}",
]


def main():
    expressions = [x.strip() for line in EXPRESSIONS.strip().split("\n") for x in line.split(" ; ")]
    first = expressions.pop(0)  # the variables, printed as they are
    sources = ["{{ %s }}" % x.strip() for x in first.split("|")]
    # "\<newline>x" spans two lines of the list
    joined = []
    for x in expressions:
        if joined and joined[-1] == '"\\':
            joined[-1] += "\n" + x
        else:
            joined.append(x)
    sources += ["{{ %s }}" % x for x in joined] + TEMPLATES
    for source in sources:
        record = {"source": source}
        try:
            record["rendered"] = ENV.from_string(source).render(**VARIABLES)
        except Exception as error:  # whatever Python raises is what must fail here too
            record["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(record, ensure_ascii=True))


if __name__ == "__main__":
    print(json.dumps({"variables": VARIABLES}, ensure_ascii=True))
    main()
