"""The checks of notebook 13; they live in `teachllama.lessons.n13_guess`."""

from teachllama.lessons.n13_guess.checks import *  # noqa: F403
