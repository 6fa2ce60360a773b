"""Real OPA, asked line by line: {"modules": [[name, text]], "data": {}, "query": "data.p.allow", "inputs": []}.

Answers {"answers": [{"value": …} | {"undefined": true} | {"error": …}]}, or {"refused": …} when OPA
does not take the modules. The wheel wants Python 3.14 in its metadata and runs under 3.11: it is
unpacked into the folder that PORTCULLIS_OPA names.
"""

import json
import os
import sys

sys.path.insert(0, os.environ["PORTCULLIS_OPA"])

from opa_bindings.engine import OpaEngine, OpaError, OpaUndefinedError  # noqa: E402


def answer(ask):
    with OpaEngine() as engine:
        engine.print_handler = lambda message, place: None
        try:
            for name, text in ask["modules"]:
                engine.add_policy(name, text)
            if ask["data"]:
                engine.add_data(ask["data"])
        except OpaError as error:
            return {"refused": error.message}
        answers = []
        path = ask["query"].removeprefix("data.")
        for document in ask["inputs"]:
            try:
                answers.append({"value": engine.eval_document(path, document)})
            except OpaUndefinedError:
                answers.append({"undefined": True})
            except OpaError as error:
                if "compile" in error.code or "rego_" in error.message and "eval_" not in error.message:
                    return {"refused": error.message}
                answers.append({"error": error.message})
        return {"answers": answers}


print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
