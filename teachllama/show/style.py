"""The style of every picture, defined in `teachllama.lessons.common`."""

from teachllama.lessons.common.style import *  # noqa: F403
