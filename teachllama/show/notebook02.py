"""The pictures of notebook 02, defined in `teachllama.lessons.n02_chat`."""

from teachllama.lessons.n02_chat.pictures import *  # noqa: F403
