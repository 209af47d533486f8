"""nbgrader's settings for this course, read by `nbgrader` in this folder and by servers that JupyterHub starts."""

import os

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "teachllama"
c.CourseDirectory.root = os.environ.get("TEACHLLAMA_COURSE", os.path.dirname(os.path.abspath(__file__)))

# The folder through which instructor and students exchange assignments. It must exist and be writable by all.
if exchange := os.environ.get("TEACHLLAMA_EXCHANGE"):
    c.Exchange.root = exchange

# A blank answer must run, so that the check below it can say that something is missing.
c.ClearSolutions.code_stub = {"python": "...  # your code here"}

# The checks stop an endless loop after about a second. This limit is for code that they do not call.
c.Execute.timeout = 120
c.Execute.startup_timeout = 180  # seconds for a kernel to start, on a machine that grades a class

# Without this, kernels warn once per notebook that they listen on this machine unencrypted.
c.Execute.extra_arguments = ["--IPKernelApp.log_level=ERROR"]

# Notebooks received by mail: downloaded/04_sessions_and_memory/archive/ada.04_sessions_and_memory.ipynb, and so on.
c.FileNameCollectorPlugin.named_regexp = r".*/(?P<student_id>[\w-]+)\.(?P<file_id>[\w-]+\.ipynb)"
