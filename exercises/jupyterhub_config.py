"""JupyterHub for a class: every student gets JupyterLab, the course's assignments, and one shared model file.

To try it on your own machine, with a password of eight characters or more and any user name ("ada", "instructor"):

    TEACHLLAMA_HUB_TRIAL=a-password jupyterhub -f exercises/jupyterhub_config.py

For a class, on a server where each student has an account (docs/instructors.md explains the steps):

    TEACHLLAMA_SHARED=/srv/teachllama TEACHLLAMA_INSTRUCTORS="maria jo" jupyterhub -f jupyterhub_config.py

TEACHLLAMA_SHARED contains models/ and kernels/ (filled by `teachllama fetch` and `warmup`, readable by all), exchange/
(writable by all), and the Hub's own database. TEACHLLAMA_COURSE, by default this folder, contains source/ with the
solutions, and the gradebook. Only the instructors may read it.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

c = get_config()  # noqa: F821

HERE = Path(__file__).resolve().parent
COURSE = Path(os.environ.get("TEACHLLAMA_COURSE") or HERE)
BIN = Path(sys.executable).parent  # the environment that runs the Hub also runs the students' servers
TRIAL = os.environ.get("TEACHLLAMA_HUB_TRIAL", "")
SHARED = Path(os.environ.get("TEACHLLAMA_SHARED") or (HERE.parent / "out" / "hub" if TRIAL else "/srv/teachllama"))
INSTRUCTORS = set(os.environ.get("TEACHLLAMA_INSTRUCTORS", "instructor").split())

for folder in ("models", "kernels", "exchange", "settings", "hub"):
    (SHARED / folder).mkdir(parents=True, exist_ok=True)
(SHARED / "exchange").chmod(0o777)  # required by nbgrader: students submit here, but cannot list other submissions
(SHARED / "hub").chmod(0o700)
shutil.copy(HERE / "nbgrader_config.py", SHARED / "settings")  # students need it, but cannot read the course folder

# ---- who can log in ----

if TRIAL:  # one password for all: safe only on your own machine
    c.JupyterHub.bind_url = "http://127.0.0.1:8000"
    c.JupyterHub.authenticator_class = "shared-password"
    c.SharedPasswordAuthenticator.user_password = TRIAL
    c.JupyterHub.spawner_class = "simple"  # everybody runs as you, each in a folder of their own
    c.SimpleLocalProcessSpawner.home_dir_template = str(SHARED / "homes" / "{username}")
    c.Authenticator.username_pattern = r"[a-z][a-z0-9_-]*"
else:
    c.JupyterHub.authenticator_class = "pam"  # the machine's own accounts; many others exist (OAuth, LTI, LDAP)
    c.Authenticator.admin_users = INSTRUCTORS
c.Authenticator.allow_all = True  # everyone with an account or, in a trial, with the password

# ---- what users get ----

c.Spawner.cmd = [str(BIN / "jupyterhub-singleuser")]
c.Spawner.default_url = "/lab"
c.Spawner.environment = {
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    "JUPYTER_CONFIG_PATH": str(SHARED / "settings"),  # the course's name, and the location of the exchange
    "TEACHLLAMA_CACHE": str(SHARED / "models"),  # load_model("smollm2-135m") finds the shared file
    "TEACHLLAMA_KERNEL_CACHE": str(SHARED / "kernels"),  # compiled once by `teachllama warmup`; read-only for users
    "TEACHLLAMA_EXCHANGE": str(SHARED / "exchange"),
    "OMP_NUM_THREADS": "2",  # otherwise each kernel would use every core
}


def for_this_user(spawner: Any) -> None:
    """Gives instructors nbgrader's grading pages and the course's folder, and students its list of assignments."""
    arguments = ["--allow-root"] if TRIAL and hasattr(os, "getuid") and os.getuid() == 0 else []  # as in containers
    if spawner.user.name in INSTRUCTORS:
        spawner.environment = {**spawner.environment, "TEACHLLAMA_COURSE": str(COURSE)}
        spawner.notebook_dir = str(COURSE)  # the grading pages require the course below it
    else:
        for name in ("formgrader", "course_list"):
            arguments.append(f"--ServerApp.jpserver_extensions=nbgrader.server_extensions.{name}=False")
    spawner.args = arguments


c.Spawner.pre_spawn_hook = for_this_user

# ---- the Hub itself ----

c.JupyterHub.db_url = f"sqlite:///{SHARED / 'hub' / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(SHARED / "hub" / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(SHARED / "hub" / "proxy.pid")
