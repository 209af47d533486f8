"""The words of the stories. Knows nothing of sentences; `grammar.py` does.

Short lists on purpose: a model of a million numbers has to learn what each of them is, does and needs.
"""

# ruff: noqa: SIM905 (lists of words read better as words)
from __future__ import annotations

GIRLS = """Anna Bella Clara Daisy Ella Emma Eva Fay Ivy Jane Kate Lily Lucy Maya Mia Molly Nina Nora Rosa Ruby Sara Tess
    Tilly Zoe""".split()
BOYS = """Adam Ben Bruno Dan Finn Hugo Jack Leo Luke Max Milo Ned Noah Oscar Otto Paul Pip Ravi Rex Sam Theo Tim Toby
    Tom""".split()
# Other names are made of these, so that a model must learn to keep a name that it has never seen.
ONSETS = "b d f k l m n p r s t v z br tr".split()
VOWELS = "a e i o u".split()

ADJECTIVES = "little small young kind brave shy curious cheerful clever quiet friendly gentle".split()
COLOURS = "red blue green yellow white black brown pink purple grey".split()
WEATHERS = "sunny windy cold warm bright cloudy".split()
GIVERS = ["grandmother", "grandfather", "mother", "father", "aunt", "uncle"]
ANIMALS = "rabbit mouse bear fox cat dog duck squirrel hedgehog frog turtle pig goat pony lamb hen".split()

# place -> (how one is there, where something can hide there)
PLACES = {
    "forest": ("in", ["behind a tall tree", "under a bush", "in the leaves", "beside a log"]),
    "beach": ("at", ["behind a rock", "under a shell", "in the sand", "beside a boat"]),
    "garden": ("in", ["behind the shed", "among the flowers", "under a bush", "beside the gate"]),
    "park": ("in", ["under a bench", "behind a tall tree", "in the long grass", "beside the pond"]),
    "farm": ("on", ["behind the barn", "in the hay", "under a cart", "beside the fence"]),
    "market": ("at", ["under a table", "behind a basket", "beside the well", "in a sack"]),
    "meadow": ("in", ["in the long grass", "among the flowers", "under a stone", "beside the stream"]),
    "hill": ("on", ["behind a rock", "under a bush", "in the long grass", "beside the path"]),
    "river": ("by", ["behind a rock", "among the reeds", "under the bridge", "beside a log"]),
    "school": ("at", ["under a desk", "behind the door", "on a shelf", "beside the stairs"]),
}
# The water at a place: something can fall into it
WATERS = {"beach": "sea", "river": "river", "park": "pond", "meadow": "stream", "farm": "pond", "forest": "lake"}
HOMES = ["by the sea", "near the forest", "at the edge of the village", "on a green hill", "beside the river",
         "at the end of a long road", "next to a mill", "under an old oak"]  # fmt: skip

# Things that one can own, lose and find
THINGS = """ball kite hat scarf doll drum bell book ring cup blanket balloon flute lamp basket bucket coat ribbon button
    mitten whistle shell boat umbrella""".split()
FRAGILE = "cup lamp drum flute kite doll boat umbrella basket bucket".split()
# Where a thing can get stuck: what it is, which things, vain tries, who can help and how
STUCK = {
    "high": (
        [("up into a tall tree", "in the tall tree"), ("onto a roof", "on the roof"),
         ("onto a high wall", "on the high wall")],
        "ball kite hat scarf balloon ribbon".split(),
        ["jumped as high as {he} could", "stood on {his} toes and reached up", "threw a stick at it",
         "stood on a box and stretched"],
        {"bird": "flew up", "owl": "flew up", "squirrel": "climbed up", "monkey": "swung up",
         "giraffe": "stretched {fhis} long neck", "elephant": "reached up with {fhis} long trunk"},
        "too high",
    ),
    "hole": (
        [("into a deep hole", "in the deep hole"), ("into a hollow log", "in the hollow log"),
         ("down a dark well", "in the dark well")],
        "ball ring cup bell button whistle shell".split(),
        ["put an arm in as far as {he} could", "poked about with a stick", "called into the dark, but that was silly",
         "lay down and looked in"],
        {"mouse": "crept in", "mole": "crept in", "lizard": "slipped in", "monkey": "reached in with one long arm",
         "spider": "let down a long thread", "snake": "slid in"},
        "too deep",
    ),
    "water": (
        [("into the {water}", "in the {water}")],
        "ball hat doll drum boat basket bucket mitten".split(),
        ["reached out with a long stick", "leaned over the water", "threw a stone to make waves",
         "took off {his} shoes, but the water was too cold"],
        {"duck": "swam out", "swan": "swam out", "otter": "dived in", "frog": "jumped in", "turtle": "swam out",
         "beaver": "paddled out"},
        "too far away",
    ),
}  # fmt: skip
# How each kind of friend looks for something
FINDERS = {
    "bird": "flew up and looked down at everything",
    "owl": "opened {fhis} big round eyes",
    "dog": "put {fhis} nose to the ground and sniffed",
    "mouse": "crept into every little gap",
    "squirrel": "climbed onto a fence and looked around",
    "fox": "pricked up {fhis} ears and sniffed the air",
    "cat": "walked about on soft paws",
    "turtle": "looked slowly and carefully",
    "ant": "asked all {fhis} sisters to look",
    "boy": "got down on {fhis} knees and looked",
    "girl": "got down on {fhis} knees and looked",
}
FOODS = "apple pear plum cake carrot biscuit nut berry cherry pancake".split()
NUMBERS = "no one two three four five six".split()
# What was heard -> what it was, and what that was doing
NOISES = {
    "Tap, tap, tap": [("a branch", "knocking on the window"), ("the rain", "dripping into a bucket"),
                      ("a woodpecker", "pecking at the roof")],
    "Hoo, hoo": [("an owl", "singing to the moon"), ("the wind", "blowing over the chimney")],
    "Scratch, scratch": [("a mouse", "looking for crumbs"), ("a hedgehog", "digging under the steps"),
                         ("a kitten", "asking to come in")],
    "Bump, bump": [("the gate", "swinging in the wind"), ("a calf", "knocking on the barn door"),
                   ("an old shutter", "banging in the wind")],
    "Squeak, squeak": [("a mouse", "calling for its mother"), ("the swing", "moving in the wind")],
    "Splash, splash": [("a frog", "jumping in the pond"), ("a duck", "taking a bath"),
                       ("a fish", "playing in the moonlight")],
}  # fmt: skip
# Skill -> who can teach it, what goes wrong, how to do it. Nobody learns what they could always do.
SKILLS = {
    "swim": (["duck", "frog", "otter", "fish"], ["sank like a stone", "swallowed a lot of water"],
             "Kick your legs and look ahead"),
    "whistle": (["bird", "boy", "girl"], ["only blew air", "made a sound like an old kettle"],
                "Make your lips round and blow softly"),
    "dance": (["swan", "butterfly", "pony", "girl"], ["stepped on {his} own feet", "turned the wrong way"],
              "Listen to the music and count to three"),
    "skate": (["boy", "girl", "penguin"], ["slipped on the ice", "slid into the snow"],
              "Bend your knees and push gently"),
    "climb": (["squirrel", "monkey", "goat"], ["slid back down", "got stuck on the lowest branch"],
              "Hold on tight and do not look down"),
    "sing": (["bird", "frog", "girl", "boy"], ["forgot the words", "sounded like a rusty door"],
             "Breathe in deeply and open your mouth wide"),
    "paint": (["fox", "boy", "girl"], ["spilled the water", "made only a big brown spot"],
              "Look first, and then use only a little paint"),
    "bake bread": (["hen", "bear", "boy", "girl"], ["burned the bread", "forgot the salt"],
                   "Wait until the dough has grown"),
    "ride a bike": (["boy", "girl", "bear"], ["fell into a bush", "rode into a fence"],
                    "Look where you want to go"),
}  # fmt: skip
WALKERS = "rabbit mouse bear fox cat dog pig goat lamb hen".split()  # who may learn anything above
# Gift -> what it is made of, and what went wrong
GIFTS = {
    "cake": (("flour", "honey"), "The cake fell on the floor", "put the pieces in a bowl with berries on top"),
    "crown": (("flowers", "grass"), "The wind blew the flowers away", "made it again from golden leaves"),
    "necklace": (("shells", "string"), "The string broke", "tied it with a strong ribbon"),
    "card": (("paper", "paint"), "A drop of paint fell in the middle", "turned the spot into a smiling sun"),
    "pillow": (("cloth", "wool"), "The cloth had a hole in it", "sewed a little heart over the hole"),
    "toy boat": (("wood", "leaves"), "The sail came off", "made a new sail from a handkerchief"),
}
PLANTS = {
    "sunflower": "as tall as a house",
    "rose": "as red as the evening sky",
    "apple tree": "full of sweet apples",
    "pumpkin": "as big as a barrel",
    "cherry tree": "white with flowers",
    "bean plant": "so high that it touched the roof",
}
HOUSES = {"bird": "nest", "mouse": "little house", "rabbit": "burrow", "hedgehog": "bed of leaves", "hen": "hut",
          "ant": "hill", "squirrel": "nest", "beaver": "lodge"}  # fmt: skip
MATERIALS = ["sticks and leaves", "straw and mud", "stones and moss", "wood and grass"]
