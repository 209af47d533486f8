"""A grammar of short stories for small children: the corpus from which the shipped model learned.

`story(seed)` is one story; the same seed gives the same story. Facts (who, where, which thing, what colour, how many)
are drawn first; then one of twelve plots is told, with each sentence drawn from several forms. So what a model must
learn is what a reader expects of a story: names, pronouns, colours and numbers stay as they are, a thing is "a" before
it is "the", whoever helps is somebody who can, and what was wanted at the beginning is what comes at the end.

Every draw goes through `Dice`, which adds up how surprising the draws were. Divided by the number of tokens that bounds
the loss of a perfect model (`Story.nats`), which is what a trained one is measured against.

In a form, `(a|b|c)` is one of a, b, c (which may hold further choices), and `{name}` is a fact.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from tiny_stories import words as w

T = TypeVar("T")
HELD_OUT = 10**9  # training reaches no seed from here on
INVENTED_NAMES = 0.15  # of all names; the rest are from the lists


class Dice:
    """Seeded draws, and how many nats of surprise they held in all."""

    def __init__(self, seed: int):
        self._random, self.nats = random.Random(seed), 0.0

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        self.nats += math.log(len(options))
        return options[self._random.randrange(len(options))]

    def chance(self, p: float) -> bool:
        """True with probability p."""
        hit = self._random.random() < p
        self.nats -= math.log(p if hit else 1 - p)
        return hit


class Facts(dict[str, Any]):
    """What is true in a story; `{Name}` is `{name}` with a capital letter."""

    def __missing__(self, key: str) -> str:
        lower = key[0].lower() + key[1:]
        if lower == key:
            raise KeyError(key)
        value = str(self[lower])
        return value[0].upper() + value[1:]


@dataclass(frozen=True)
class Who:
    """A character."""

    name: str
    kind: str
    adjective: str
    female: bool

    def facts(self, prefix: str, name: str) -> dict[str, str]:
        he, him, his = ("she", "her", "her") if self.female else ("he", "him", "his")
        return {name: self.name, f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his,
                f"{prefix}kind": self.kind, f"{prefix}adj": self.adjective}  # fmt: skip


class Story(NamedTuple):
    """A story, and the surprise of its draws, which bounds the entropy of its text from above."""

    text: str
    nats: float
    plot: str


class Teller:
    """Tells one story: draws facts, then sentences."""

    def __init__(self, dice: Dice):
        self.dice, self.facts = dice, Facts()

    # ---- sentences ----

    def say(self, form: str) -> str:
        """One way of saying it."""
        return self._choose(form).format_map(self.facts)

    def _choose(self, form: str) -> str:
        """Replaces each outermost (a|b) by one of its options, in which the same is done."""
        out, at = [], 0
        while (start := form.find("(", at)) >= 0:
            out.append(form[at:start])
            depth, cuts, i = 1, [start], start
            while depth:
                i += 1
                depth += {"(": 1, ")": -1}.get(form[i], 0)
                if form[i] == "|" and depth == 1:
                    cuts.append(i)
            cuts.append(i)
            options = [form[a + 1 : b] for a, b in pairwise(cuts)]
            out.append(self._choose(self.dice.pick(options)))
            at = i + 1
        return "".join(out) + form[at:]

    # ---- facts ----

    def draw(self, **lists: Sequence[Any]) -> None:
        """Draws one fact from each list."""
        for name, options in lists.items():
            self.facts[name] = self.dice.pick(options)

    def two(self, options: Sequence[T]) -> tuple[T, T]:
        """Two different ones."""
        first = self.dice.pick(options)
        return first, self.dice.pick([o for o in options if o != first])

    def who(self, kinds: Sequence[str], prefix: str = "", name: str = "hero") -> Who:
        """Draws a character of one of these kinds, whose name nobody else has."""
        kind = self.dice.pick(kinds)
        female = {"girl": True, "boy": False}.get(kind)
        female = self.dice.chance(0.5) if female is None else female
        taken = [self.facts.get("hero"), self.facts.get("friend")]
        if self.dice.chance(INVENTED_NAMES):
            syllables = [self.dice.pick(w.ONSETS) + self.dice.pick(w.VOWELS) for _ in range(2 + self.dice.chance(0.4))]
            chosen = "".join(syllables).capitalize()
        else:
            chosen = self.dice.pick([n for n in (w.GIRLS if female else w.BOYS) if n not in taken])
        who = Who(chosen, kind, self.dice.pick(w.ADJECTIVES), female)
        self.facts |= who.facts(prefix, name)
        return who

    def hero(self, kinds: Sequence[str] | None = None) -> None:
        """Draws the hero: a child in half of the stories, else an animal."""
        animals = w.ANIMALS if kinds is None else kinds
        self.who(["boy", "girl"] if self.dice.chance(0.5) else animals)

    def friend(self, kinds: Sequence[str]) -> None:
        """Draws the one whom the hero meets; two animals of one story are not of one kind."""
        hero = self.facts["kind"]
        self.who([k for k in kinds if k != hero or k in ("boy", "girl")], "f", "friend")

    def place(self, names: Sequence[str] = tuple(w.PLACES)) -> None:
        """Draws where it happens, and three hiding places there."""
        name = self.dice.pick(names)
        preposition, spots = w.PLACES[name]
        self.facts |= {"water": w.WATERS.get(name), "to": f"to the {name}", "there": f"{preposition} the {name}"}
        first, second = self.two(spots)
        self.facts |= {"spot1": first, "spot2": second}
        self.facts["spot3"] = self.dice.pick([s for s in spots if s not in (first, second)])

    # ---- what all plots share ----

    def opening(self) -> str:
        self.draw(home=w.HOMES)
        return self.say(
            "(Once upon a time(,|) there was a {adj} {kind} named {hero}.( {He} lived {home}.|)"
            "|{Hero} was a {adj} {kind} who lived {home}."
            "|There once was a {adj} {kind}(, and {his} name was {hero}.| called {hero}.)( {He} lived {home}.|)"
            "|In a small house {home} lived a {adj} {kind} named {hero}."
            "|Long ago, a {adj} {kind} named {hero} lived {home}."
            "|A {adj} {kind} named {hero} lived {home}.)"
        )

    def day(self) -> str:
        self.draw(weather=w.WEATHERS)
        return self.say(
            "(One day|One {weather} day|One {weather} morning|One morning|On a {weather} day|One afternoon)"
        )

    def meet(self) -> str:
        """The friend comes: never mentioned before, so with "a"."""
        return self.say(
            "(Just then(,|) a {fadj} {fkind} named {friend} came (by|along)."
            "|A {fadj} {fkind} named {friend} (heard {him}|saw {him}|came by)."
            "|Soon {he} met a {fadj} {fkind}( called {friend}|, whose name was {friend}| named {friend}).)"
        )

    def thanks(self) -> str:
        return self.say(
            '("Thank you, {friend}!" (said|cried) {hero}.|"Thank you so much!" said {hero}.'
            '|{Hero} thanked {friend} (with a big hug|again and again).|"You are so kind, {friend}!" said {hero}.)'
        )

    def ending(self, lesson: str) -> str:
        """The last paragraph. `lesson` completes "learned that"."""
        self.facts["lesson"] = lesson
        return self.say(
            "(From that day on, {hero} and {friend} were (good|the best of) friends."
            "|{Hero} and {friend} (played|laughed|sang) together until (the sun went down|it was time to go home)."
            "|That (night|evening), {hero} (fell asleep with a smile|told {his} family all about {friend})."
            "|{Hero} was (happy|glad|proud) all day.)"
        ) + self.say("(( {Hero} had learned that| Now {hero} knew that) {lesson}.|)( The end.|)")


# ---- the plots: each returns its paragraphs ----


def lost(t: Teller) -> list[str]:
    """Something is lost, and found with a friend's help."""
    t.hero()
    t.friend(list(w.FINDERS))
    t.draw(thing=w.THINGS, colour=w.COLOURS, giver=w.GIVERS)
    t.place()
    t.facts["looks"] = t.say(w.FINDERS[t.facts["fkind"]])
    return [
        t.opening() + " "
        + t.say("({Hero} had a {colour} {thing}( from {his} {giver}|).|{His} {giver} had given {him} a {colour} "
                "{thing}.)"
                " {He} (loved it very much|took it everywhere|never went out without it)."),
        t.day() + " "
        + t.say("{hero} went {to}( with {his} {thing}|). (When {he} wanted to go home|After a while|When it got "
                "late), "
                "the {thing} was gone! {Hero} looked {spot1}, but it was not there. {He} looked {spot2}, but "
                "(there was only a snail|there was only an old leaf|found nothing|it was not there). "
                "{Hero} (began to cry|sat down and cried|felt very sad)."),
        t.meet() + " "
        + t.say('"(Why are you (so sad|crying)|What is the matter|What is wrong)?" asked {friend}. '
                '"I (have lost|cannot find) my {colour} {thing}," said {hero}. '
                '"(Do not worry|Do not cry|Do not be sad), (I will help you|we will find it together|we can '
                'look together)'
                '," said {friend}. {Fhe} {looks}. (Soon|Before long|After a while) {fhe} (called|cried), '
                '"(Look|Here it is|I see it)! (Your {thing} is {spot3}|It is {spot3})!"'),
        t.say("(And there it was|{Hero} ran to look, and there it was): the {colour} {thing}. ") + t.thanks() + " "
        + t.ending("friends help each other"),
    ]  # fmt: skip


def stuck(t: Teller) -> list[str]:
    """A thing is out of reach, and someone can do what the hero cannot."""
    how = t.dice.pick(list(w.STUCK))
    where, things, tries, helpers, too = w.STUCK[how]
    t.hero([a for a in w.ANIMALS if a not in helpers and a not in ("dog", "squirrel", "hen")])
    t.friend(list(helpers))
    t.draw(thing=things, colour=w.COLOURS)
    t.place(list(w.WATERS) if how == "water" else list(w.PLACES))
    t.facts["gone"], t.facts["stuck"] = map(t.say, t.dice.pick(where))
    first, second = t.two(tries)
    t.facts |= {"try1": t.say(first), "try2": t.say(second), "can": t.say(helpers[t.facts["fkind"]]), "too": too}
    return [
        t.opening(),
        t.day() + " "
        + t.say("{hero} was playing {there} with a {colour} {thing}. "
                "(Suddenly|Then|All at once) the {thing} (went|fell|flew) {gone}. "
                "(\"Oh no, my {thing}!\" cried {hero}.|\"Oh no!\" said {hero}.|{Hero} wanted it back.) "
                "{He} {try1}. It did not help. (Then|Next) {he} {try2}. (But the {thing} was {too}|It was {too})."),
        t.meet() + " "
        + t.say('("What are you doing?" asked {friend}. |"Can I help you?" asked {friend}. |)'
                '"My {thing} is {stuck}," said {hero}. "(It is {too} for me|I cannot reach it|I cannot get it)." '
                '"(That is easy for a {fkind}|I can get it|Let me try)," said {friend}. '
                "{Fhe} {can} and (got|brought back|took hold of) the {colour} {thing}."),
        t.say("(\"Here is your {thing},\" said {friend}. |{Friend} gave the {thing} to {hero}. )") + t.thanks() + " "
        + t.ending(t.dice.pick(["everyone is good at something", "it is wise to ask for help"])),
    ]  # fmt: skip


def share(t: Teller) -> list[str]:
    """Some have much and some have nothing; numbers must come out right."""
    t.hero()
    t.friend(["bird", "mouse", "fox", "hedgehog", "rabbit", "boy", "girl", "dog", "cat"])
    t.draw(food=w.FOODS, giver=w.GIVERS)
    t.place()
    n = t.dice.pick([2, 3, 4, 5, 6])
    k = t.dice.pick(range(1, n))
    food = t.facts["food"]
    plural = food[:-1] + "ies" if food.endswith("y") else food + "s"
    count = lambda number: f"{w.NUMBERS[number]} {food if number == 1 else plural}"
    t.facts |= {"n": count(n), "k": count(k), "left": count(n - k), "foods": plural, "given": w.NUMBERS[k]}
    return [
        t.opening(),
        t.day() + " "
        + t.say("{hero} ((took|carried) {n} {to}|had {n} for lunch and went {to}). "
                "({His} {giver} had given them to {him}. |)"
                "({He} sat down to eat|{He} was very hungry|{He} wanted to eat them all)."),
        t.meet() + " "
        + t.say('("I am so hungry," said {friend}. |{Friend} looked thin and hungry. |"I have had nothing to '
                'eat today," '
                'said {friend}. )"You can have some of my {foods}," said {hero}, and gave {fhim} {given}. '
                "(Now {hero} had {left} and {friend} had {k}.|{Friend} had {k} now, and {hero} still had {left}.) "
                "They (sat|ate) together, and (the {foods} tasted better than ever|it was a lovely meal)."),
        t.say('("You are so kind, {hero}!" said {friend}. |"Thank you for the {foods}," said {friend}. |)'
              "(The next day {friend} came back with a (flower|song|big smile) for {hero}. |)")
        + t.ending("food tastes best when it is shared"),
    ]  # fmt: skip


def noise(t: Teller) -> list[str]:
    """Something is heard at night, and it is nothing bad."""
    t.hero()
    t.friend(["bird", "cat", "dog", "mouse", "boy", "girl", "rabbit"])
    t.draw(noise=list(w.NOISES), where=["outside", "under the window", "behind the house"])
    strangers = [c for c in w.NOISES[t.facts["noise"]] if c[0].split()[-1] not in (t.facts["kind"], t.facts["fkind"])]
    t.facts["cause"], t.facts["doing"] = t.dice.pick(strangers)
    t.facts["it"] = t.facts["cause"].removeprefix("an ").removeprefix("a ").removeprefix("the ")
    return [
        t.opening() + " " + t.say("{His} best friend was a {fadj} {fkind} named {friend}."),
        t.say('One (dark|stormy|cold|quiet) night, {hero} (woke up|could not sleep|lay in bed). "{noise}!" It '
              'came from '
              '{where}. (What could it be?|What was that?|{Hero} sat up.) "{noise}!" There it was again. '
              "{Hero} (pulled the blanket over {his} head|was afraid|began to shake)."),
        t.say('{He} (woke|called) {friend}. "(I think it is|It must be) a (monster|ghost|dragon)," whispered {hero}. '
              '"(Let us go and look|We will look together|I will come with you)," said {friend}. '
              "They took a lamp and (went|crept) out (slowly|on tiptoe|hand in hand). "
              'It was only {cause}, {doing}!'),
        t.say('("Only the {it}!" laughed {hero}. |They laughed and laughed. |"I am not afraid of that," said '
              '{hero}. )'
              "(Then they went back to bed|Soon they were both asleep|They drank warm milk and went to sleep). ")
        + t.say("({Hero} was not afraid of the dark any more.|And when {hero} heard it again, {he} only smiled."
                "|{Hero} had learned that things are less scary when you look at them.)( The end.|)"),
    ]  # fmt: skip


def learn(t: Teller) -> list[str]:
    """The third try succeeds."""
    skill = t.dice.pick(list(w.SKILLS))
    teachers, mishaps, advice = w.SKILLS[skill]
    t.hero([a for a in w.WALKERS if a not in teachers])
    t.friend(teachers)
    first, second = t.two(mishaps)
    t.facts |= {"skill": skill, "oops1": t.say(first), "oops2": t.say(second), "advice": advice}
    return [
        t.opening() + " "
        + t.say("{Hero} wanted to learn to {skill}( more than anything|), but {he} did not know how."),
        t.day() + " "
        + t.say("{he} (met|saw) a {fadj} {fkind} named {friend}, who could {skill} very well. "
                '"(Will you teach me to {skill}|Can you show me how to {skill}|Please, how do you do it)?" '
                'asked {hero}. '
                '"(Of course|Yes, I will|With pleasure)," said {friend}. "{advice}."'),
        t.say("{Hero} tried, and {oops1}. {He} tried again, and {oops2}. "
              '("I will never learn it," (said|sighed) {hero}. |{Hero} wanted to give up. |"It is too hard," '
              'said {hero}. )'
              '"(Do not give up|Try once more|One more time)," said {friend}. "{advice}." '
              "So {hero} tried a third time. (It worked!|And this time it worked!|And at last {he} could do it!)"),
        t.say('("I can {skill}!" (shouted|cried) {hero}. |{Hero} jumped for joy. )'
              '("I knew you could do it," said {friend}. |{Friend} was very proud. |)')
        + t.ending("you must try more than once"),
    ]  # fmt: skip


def gift(t: Teller) -> list[str]:
    """A present goes wrong and is mended with an idea."""
    t.hero()
    t.friend(["bird", "owl", "mouse", "bear", "boy", "girl", "fox", "rabbit"])
    gift = t.dice.pick(list(w.GIFTS))
    (one, two), t.facts["bad"], t.facts["mend"] = w.GIFTS[gift]
    t.place()
    t.facts |= {"gift": gift, "one": one, "two": two}
    return [
        t.opening() + " " + t.say("{His} best friend was a {fadj} {fkind} named {friend}."),
        t.say("(Tomorrow was {friend}'s birthday|It was {friend}'s birthday|It would soon be {friend}'s birthday). "
              '"I will make (a {gift} for {friend}|{fhim} a {gift})," (said|thought) {hero}. '
              "{He} (looked for|needed) {one} and {two}, (so {he} went {to}|and found them {there}). "
              "(Then {he} began to work|{He} worked all day|{He} sat down and began)."),
        t.say('But then something bad happened. {bad}! "(Oh no|Oh dear), (now it is spoiled|what shall I do)?" '
              "(said|cried) {hero}. {He} thought (hard|for a while|and thought). Then {he} had an idea. "
              "{He} {mend}. (Now it was even prettier|It looked better than before|Now it was ready)."),
        t.say('"Happy birthday, {friend}!" said {hero}(, and gave {fhim} the {gift}|). '
              '("This is the best {gift} I have ever (had|seen)," said {friend}. |{Friend} loved the {gift}. '
              '|"You made it yourself!" said {friend}. )')
        + t.ending("a gift made with love is the best"),
    ]  # fmt: skip


def sorry(t: Teller) -> list[str]:
    """Something borrowed breaks; telling the truth helps."""
    t.hero()
    t.friend(["boy", "girl", "fox", "bear", "mouse", "rabbit", "cat", "owl"])
    t.draw(thing=w.FRAGILE, colour=w.COLOURS,
           broke=["dropped it", "sat on it", "fell over it", "left it out in the rain"])  # fmt: skip
    return [
        t.opening() + " "
        + t.say("{His} friend {friend}, a {fadj} {fkind}, had a {colour} {thing}."),
        t.day() + " "
        + t.say("{hero} took the {thing} without asking. {He} (wanted to play with it|wanted to try it|took it "
                "home). "
                "But {he} {broke}, and the {colour} {thing} (was broken|broke). "
                "({Hero} hid it (under the bed|behind the door|in a box).|{Hero} did not know what to do.)"),
        t.say('(The next day|Soon|Later) {friend} (came to see {hero}|came by). '
              '"(Have you seen my {thing}|Do you know where my {thing} is)?" asked {friend}. ')
        + t.say("{Hero} (looked at the floor|turned red|felt terrible). "
                '"I took it, and it (is broken|broke)," {he} said. "I am (so|very) sorry."'),
        t.say('({Friend} was sad, but {fhe} was not angry. |{Friend} was quiet for a moment. )'
              '"(Thank you for telling me|It is good that you told me)," said {friend}. "(Let us mend it|We can '
              'mend it)'
              '( together|)." They (used glue and string|worked all afternoon), and soon the {thing} was '
              '(whole|as good as '
              "new). ")
        + t.ending(t.dice.pick(["it is best to tell the truth", "you should ask before you take"])),
    ]  # fmt: skip


def seed(t: Teller) -> list[str]:
    """Waiting is hard, and worth it."""
    t.hero()
    t.friend(["bird", "mouse", "snail", "bee", "boy", "girl", "hen"])
    t.draw(plant=list(w.PLANTS), giver=w.GIVERS, spot=["in the garden", "behind the house", "beside the gate"])
    t.facts["grown"] = w.PLANTS[t.facts["plant"]]
    return [
        t.opening() + " "
        + t.say("(One spring|One day), {his} {giver} gave {him} a (tiny|small) seed. "
                '"(If you take care of it, it will be|One day this will be|Plant it, and it will become) a {plant}," '
                "said the {giver}."),
        t.say("{Hero} (planted|put) the seed {spot} and gave it water every (day|morning). (One week|A week) "
              "went by, but "
              "(nothing grew|nothing happened). Two weeks went by, and still (nothing grew|there was nothing). "
              '"(It will never grow|My seed is dead)," said {hero} sadly.'),
        t.meet() + " "
        + t.say('"(Wait a little longer|You must be patient|Good things take time)," said {friend}. '
                "So {hero} waited, and (watered the seed|sang to the seed|watched). "
                "And one morning there was a (tiny|little) green leaf! {Hero} (danced|jumped) for joy."),
        t.say("The {plant} grew and grew, until it was {grown}. "
              '("Look, {friend}!" (called|said) {hero}. "It was worth waiting." |{Hero} showed it to {friend}. )')
        + t.ending("good things take time"),
    ]  # fmt: skip


def storm(t: Teller) -> list[str]:
    """Someone loses a home, and gets a new one."""
    t.hero([a for a in w.ANIMALS if a not in w.HOUSES])
    t.friend(list(w.HOUSES))
    t.facts["house"] = w.HOUSES[t.facts["fkind"]]
    t.draw(stuff=w.MATERIALS, storm=["storm", "flood", "whirlwind"])
    t.place()
    return [
        t.opening(),
        t.say("One (night|evening) there was a (great|big|terrible) {storm}. {Hero} was (safe|warm and dry) at home. "
              "(Then there was a knock at the door|Suddenly someone knocked|Knock, knock). "
              "There stood a {fadj} {fkind} named {friend}, (wet and cold|shaking with cold)."),
        t.say('"The {storm} took away my {house}," said {friend}. '
              '"(May I stay here tonight?|I have no home any more.|Can I come in?)" ')
        + t.say('"(Come in|Please come in|You are welcome here)!" said {hero}. {He} gave {fhim} (warm soup|a '
                'blanket|hot tea and bread)'
                ". Soon {friend} (was warm again|fell asleep by the fire|stopped shaking)."),
        t.say("(In the morning|The next day) they went {to} and (gathered|found) {stuff}. They worked (all day|until "
              "evening). At last {friend} had a new {house}. "
              '("It is better than the old one!" said {friend}. |"Thank you, {hero}!" said {friend}. )')
        + t.ending("a warm heart is the best house"),
    ]  # fmt: skip


def race(t: Teller) -> list[str]:
    """Someone falls, and winning matters less."""
    t.hero()
    t.friend(["fox", "rabbit", "pony", "boy", "girl", "dog", "cat", "goat"])
    t.draw(prize=["a golden cup", "a big cake", "a basket of apples", "a silver bell"],
           goal=["the old mill", "the big oak", "the bridge", "the church"])  # fmt: skip
    t.facts["won"] = t.facts["prize"].removeprefix("a ")
    t.facts["limb"] = "knee" if t.facts["fkind"] in ("boy", "girl") else t.dice.pick(["paw", "leg"])
    if t.facts["fkind"] in ("pony", "goat"):
        t.facts["limb"] = "leg"
    return [
        t.opening() + " " + t.say("{He} could run very fast."),
        t.say("One (day|morning) there was a race to {goal}. The prize was {prize}. "
              '"I will win," said a {fadj} {fkind} named {friend}. "(We will see|No, I will win)," said {hero}. '
              "(One, two, three, go!|Ready, steady, go!) (They ran like the wind|Off they went)."),
        t.say("{Friend} was (first|ahead). But (near|just before) {goal} {fhe} (fell over a stone|slipped in "
              "the mud) and "
              'hurt {fhis} {limb}. "(Ouch|Ow)!" cried {friend}. {Hero} could have won now. But {he} stopped. '
              '"Does your {limb} hurt?" asked {hero}. "(Lean on me|I will help you)." '
              "So they (walked|went) on together."),
        t.say("They came to {goal} at the same time, and (everyone clapped|everyone cheered). They shared the "
              "{won}. ")
        + t.ending("being kind is better than winning"),
    ]  # fmt: skip


def wish(t: Teller) -> list[str]:
    """Help given to a stranger comes back."""
    t.hero()
    t.friend(["boy", "girl", "owl", "bear", "goat", "hen"])
    t.draw(thing=w.THINGS, colour=w.COLOURS, load=["wood", "water", "stones", "potatoes"])
    return [
        t.opening() + " "
        + t.say("{Hero} wished for a {colour} {thing}(, but {he} had no money| more than anything|). "
                "(Every night {he} looked at the stars and wished.|{He} dreamed of it every night.)"),
        t.day() + " "
        + t.say("{hero} met a {fadj} {fkind} named {friend}, who was carrying a heavy load of {load}. "
                '"(Can I help you|Shall I help you|Is it heavy)?" asked {hero}. '
                '"(Yes, please|Oh yes, thank you)," said {friend}. '
                "Together they carried the {load} (up the hill|over the bridge|all the way home)."),
        t.say('"You (are very kind|have been a great help)," said {friend}. "(Is there something that you wish for|'
              'What do you wish for)?" "I wish for a {colour} {thing}," said {hero}. {Friend} (smiled|laughed) '
              'and opened a '
              "(box|chest|cupboard). (In it was|And out came) a {colour} {thing}!"),
        t.thanks() + " "
        + t.say("{He} (held the {thing} tight|took the {thing} home|could not stop smiling). ")
        + t.ending("kindness comes back to you"),
    ]  # fmt: skip


def alone(t: Teller) -> list[str]:
    """Someone new has nobody to play with."""
    t.hero()
    t.friend(["boy", "girl", "mouse", "fox", "bear", "hedgehog", "duck", "lamb"])
    t.draw(game=["hide and seek", "tag", "ball", "pirates"], thing=w.THINGS, colour=w.COLOURS)
    t.place()
    return [
        t.opening() + " " + t.say("{He} liked to play {game} {there}."),
        t.day() + " "
        + t.say("{hero} saw a {fadj} {fkind} who sat all alone (with|beside) a {colour} {thing}. "
                '"(Hello|Good morning|Hi)! (What is your name|Who are you)?" asked {hero}. '
                '"My name is {friend}," said the {fkind}. "I am new here, and I (have no friends|know nobody)."'),
        t.say('("(Do you want to|Would you like to) play {game} with me?" asked {hero}.|"Come and play {game}!" '
              'said {hero}.) ')
        + t.say("{Friend}'s eyes (shone|lit up). They played {game} (all day|for hours|until they were tired). "
                "Then {friend} let {hero} try the {colour} {thing}. (It was great fun|They laughed a lot)."),
        t.say('("I am not alone any more," said {friend}. |"This was my best day," said {friend}. '
              '|"Come back tomorrow!" said {hero}. )')
        + t.ending("a friend is just a hello away"),
    ]  # fmt: skip


PLOTS: dict[str, Callable[[Teller], list[str]]] = {
    plot.__name__: plot for plot in (lost, stuck, share, noise, learn, gift, sorry, seed, storm, race, wish, alone)
}


def story(seed: int) -> Story:
    """The story of a seed: paragraphs, each on its own line."""
    dice = Dice(seed)
    name = dice.pick(list(PLOTS))
    text = "\n".join(PLOTS[name](Teller(dice)))
    return Story(re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text), dice.nats, name)
