"""The pictures of notebook 13, defined in `teachllama.lessons.n13_guess`."""

from teachllama.lessons.n13_guess.pictures import *  # noqa: F403
