"""Judges a story by the grammar's own rules: what is wrong with it, if anything.

It looks for the mistakes that a model makes, not for beauty: a name that nobody introduced, a hero who changes from
"he" to "she", a red kite that comes back blue, three apples of which two are given and two are left, a fish that
teaches climbing. No story of the grammar has a flaw, which a test checks; `measure.py` counts a model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tiny_stories import words as w

_COLOURS = "|".join(w.COLOURS)
_THINGS = "|".join(w.THINGS)
_HELPERS = {kind for _, _, _, helpers, _ in w.STUCK.values() for kind in helpers}
_TEACHERS = {kind for teachers, _, _ in w.SKILLS.values() for kind in teachers}
KINDS = sorted({"boy", "girl", "snail", "bee", "lamb", *w.ANIMALS, *w.FINDERS, *w.HOUSES, *_HELPERS, *_TEACHERS})
_KIND = "|".join(KINDS)
_HE, _SHE = {"he", "him", "his"}, {"she", "her"}


def flaws(text: str) -> list[str]:
    """The names of what is wrong; empty for a story without flaw."""
    return [name for name, found in _flaws(text) if found]


def _flaws(text: str) -> Iterator[tuple[str, bool]]:
    yield "broken off", not re.search(r'[.!]"?$', text) or text.count('"') % 2 == 1
    sentences = re.findall(r"[^.!?]+", text)
    yield "repeats", any(sentences.count(s) > 2 for s in sentences if len(s.split()) > 3)

    # Names are the capitalised words inside sentences. There are two, and each is introduced once.
    names = list(dict.fromkeys(n for n in re.findall(r"(?<=[a-z,] )([A-Z][a-z]+)", text) if n != "I"))
    names = sorted(names, key=text.find)
    kinds = {name: introductions(name, text) for name in names}
    yield "names", len(names) != 2 or any(len(found) != 1 for found in kinds.values())
    if len(names) != 2 or not all(kinds.values()):
        return
    hero, friend = names

    # Until the friend comes every pronoun is the hero's; later ones belong to one of the two.
    known = {n: gender(n, kinds[n][0]) for n in names}
    said = {p: {g for g, words in (("she", _SHE), ("he", _HE)) if words & set(re.findall(r"[a-z]+", p.lower()))}
            for p in (text[: text.find(friend)], text)}  # fmt: skip
    before, ever = said[text[: text.find(friend)]], said[text]
    wrong = len(before) > 1 or (known[hero] is not None and not before <= {known[hero]})
    yield "pronouns", wrong or (None not in known.values() and not ever <= set(known.values()))

    # One coloured thing, whose colour stays.
    coloured = set(re.findall(rf"\b({_COLOURS}) ({_THINGS})\b", text))
    yield "colour", len(coloured) > 1
    definite = set(re.findall(rf"\b(?:the|my|your) (?:(?:{_COLOURS}) )?({_THINGS})\b", text.lower()))
    yield "thing", bool(coloured) and not definite <= {thing for _, thing in coloured}

    # Numbers that come out right.
    number = {word: n for n, word in enumerate(w.NUMBERS)}
    some = "|".join(w.NUMBERS[1:])
    if given := re.search(rf"gave (?:him|her) ({some})\b", text):
        k = number[given[1]]
        had = re.search(rf"\b({some}) \w+", text[: given.start()])
        left = re.search(rf"Now {hero} had ({some}) \w+ and {friend} had ({some}) ", text)
        rest = re.search(rf"{friend} had ({some}) \w+ now, and {hero} still had ({some}) ", text)
        after = (left[1], left[2]) if left else (rest[2], rest[1]) if rest else None
        right = had and after and number[after[1]] == k and number[after[0]] + k == number[had[1]]
        yield "numbers", not right

    # The friend can do it, and stays the animal that it was.
    kind = kinds[friend][0]
    easy = re.search(rf"easy for an? ({_KIND})\b|said the ({_KIND})\b", text)
    alone = re.search(rf"saw an? \w+ ({_KIND}) who sat all alone", text)
    yield "kind", any(m and kind not in m.groups() for m in (easy, alone))
    for where, _, _, helpers, _ in w.STUCK.values():
        spots = "|".join(spot.replace("{water}", "(?:sea|river|pond|stream|lake)") for _, spot in where)
        if re.search(rf'"My \w+ is (?:{spots})', text):
            does = helpers.get(kind, "?").replace("{fhis}", "(?:his|her)")
            yield "helper", not re.search(rf"{does} and (?:got|brought back|took hold of)", text)
    if skill := re.search(rf"to learn to ({'|'.join(w.SKILLS)})", text):
        teachers, _, advice = w.SKILLS[skill[1]]
        yield "helper", kind not in teachers or advice not in text
    if house := re.search(r"took away my ([a-z ]+),", text):
        yield "house", w.HOUSES.get(kind) != house[1] or f"a new {house[1]}" not in text
    if plant := re.search(rf"an? ({'|'.join(w.PLANTS)}),\"", text):
        yield "plant", f"The {plant[1]} grew" not in text or w.PLANTS[plant[1]] not in text


def introductions(name: str, text: str) -> list[str]:
    """What kind of character a name was said to be, each time that it was introduced."""
    n = re.escape(name)
    forms = (rf"({_KIND}) (?:named|called) {n}\b", rf"({_KIND}), (?:and (?:his|her)|whose) name was {n}\b",
             rf"\b{n} was an? \w+ ({_KIND})\b", rf"friend {n}, an? \w+ ({_KIND})\b",
             rf"\b{n} is\b.*?said the ({_KIND})\b", rf"name is {n},\" said the ({_KIND})\b")  # fmt: skip
    return [kind for form in forms for kind in re.findall(form, text)]


def gender(name: str, kind: str) -> str | None:
    """ "she", "he", or None for an animal whose name tells nothing."""
    if kind in ("girl", "boy"):
        return "she" if kind == "girl" else "he"
    return "she" if name in w.GIRLS else "he" if name in w.BOYS else None
