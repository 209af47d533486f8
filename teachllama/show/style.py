"""How every picture looks; it lives in `teachllama.lessons.common`."""

from teachllama.lessons.common.style import *  # noqa: F403
