"""The pictures of notebook 09, defined in `teachllama.lessons.n09_prefixes`."""

from teachllama.lessons.n09_prefixes.pictures import *  # noqa: F403
