"""An environment for the notebooks on Colab and Kaggle, made by their first cell.

The machine's own Python packages, JAX among them, stay as they are: what the project needs is
installed into `.venv`, which the commands and the imports of the notebook then use. Without the
internet, pip takes wheels of an attached dataset: set PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER.
"""

import glob
import os
import subprocess
import sys

sys.path.insert(0, os.getcwd())

from tpo_jax.study.machines import find_chips

if not os.path.exists(".venv/bin/python"):
    # Not `python -m venv`, which Debian's Python lacks.
    for arguments in (["pip", "install", "-q", "virtualenv"], ["virtualenv", "-q", ".venv"]):
        subprocess.run([sys.executable, "-m", *arguments], check=True)
extra = "tpu" if find_chips() else ""
subprocess.run(["bash", "-c", f"source launch/env.sh && make_env {extra}"], check=True)
os.environ["PATH"] = os.pathsep.join([os.path.abspath(".venv/bin"), os.environ["PATH"]])
sys.path[:0] = glob.glob(os.path.abspath(".venv/lib/python*/site-packages"))
if mixed := sorted({"numpy", "matplotlib", "jax"} & sys.modules.keys()):
    print(f"{', '.join(mixed)} of the machine are in use: if pictures fail, restart and run again")
