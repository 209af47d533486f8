"""nbgrader's settings for this course; read by `nbgrader` in this folder, and by servers that JupyterHub starts."""

import os

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "teachllama"
c.CourseDirectory.root = os.environ.get("TEACHLLAMA_COURSE", os.path.dirname(os.path.abspath(__file__)))

# Where assignments lie between instructor and students; it must exist, and all must be able to write there.
if exchange := os.environ.get("TEACHLLAMA_EXCHANGE"):
    c.Exchange.root = exchange

# A blank answer runs, so the check below it can say that something is missing.
c.ClearSolutions.code_stub = {"python": "...  # your code here"}

# The checks stop an endless loop after a second or so. This is for what they do not call.
c.Execute.timeout = 120
c.Execute.startup_timeout = 180  # seconds for a kernel to start, on a machine that grades a class

# Kernels would warn, once a notebook, that they listen on this machine unencrypted.
c.Execute.extra_arguments = ["--IPKernelApp.log_level=ERROR"]

# Notebooks that came by mail: downloaded/04_sessions_and_memory/archive/ada.04_sessions_and_memory.ipynb, and so on.
c.FileNameCollectorPlugin.named_regexp = r".*/(?P<student_id>[\w-]+)\.(?P<file_id>[\w-]+\.ipynb)"
