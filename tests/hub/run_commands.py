"""Runs `hf-mlp-fusion` commands one after another in one process.

Usage: python run_commands.py COMMANDS OUT, COMMANDS a JSON object of argument lists by name, OUT the file to write: by
name, the exit code and what was printed.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from hf_mlp_fusion.cli import main

commands, results_file = map(Path, sys.argv[1:])
results = {}
for name, arguments in json.loads(commands.read_text()).items():
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["hf-mlp-fusion", *arguments]
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
    results[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
results_file.write_text(json.dumps(results))
