"""Published models for calculations, defined in `teachllama.lessons.n04_sessions`."""

from teachllama.lessons.n04_sessions.shapes import *  # noqa: F403
