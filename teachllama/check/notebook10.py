"""The checks of notebook 10, defined in `teachllama.lessons.n10_sessions`."""

from teachllama.lessons.n10_sessions.checks import *  # noqa: F403
