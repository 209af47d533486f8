"""The checks of notebook 04, defined in `teachllama.lessons.n04_sessions`."""

from teachllama.lessons.n04_sessions.checks import *  # noqa: F403
