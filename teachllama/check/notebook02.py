"""The checks of notebook 02, defined in `teachllama.lessons.n02_chat`."""

from teachllama.lessons.n02_chat.checks import *  # noqa: F403
