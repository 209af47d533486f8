"""The checks of notebook 09, defined in `teachllama.lessons.n09_prefixes`."""

from teachllama.lessons.n09_prefixes.checks import *  # noqa: F403
