"""The pictures of notebook 04, defined in `teachllama.lessons.n04_sessions`."""

from teachllama.lessons.n04_sessions.pictures import *  # noqa: F403
