"""Prints what a recipe in YAML runs, or what the README lacks of a recipe that it shows.

extract.py script FILE          the job as a script for bash; a secret X is the variable SECRET_X
extract.py container FILE       what the container sf-refresh gets: NAME=VALUE and arguments, one a line
extract.py shown README FILE    the lines of the recipe that the README lacks
"""

import re
import shlex
import sys


def script(path):
    (document,) = load(path)
    if "jobs" not in document:
        (job,) = document.values()
        print(step("set -eo pipefail\n" + "\n".join(job["script"]), job.get("variables", {})))
        return
    (job,) = document["jobs"].values()
    for one in job["steps"]:
        print(step("set -e\n" + one["run"], one.get("env", {})))
        print('set -a; . "$GITHUB_ENV"; set +a')


def step(text, env):
    """A command that runs the text in a shell of its own, with these variables."""
    return f"env {' '.join(map(assigned, env, env.values()))} bash -c {shlex.quote(text)} || exit"


def assigned(name, value):
    secret = re.fullmatch(r"\$\{\{ secrets\.(\w+) \}\}", value)
    if secret:
        return f'{name}="$SECRET_{secret[1]}"'
    if value == "${{ github.repository }}":
        return f'{name}="$GITHUB_REPOSITORY"'
    return f"{name}={shlex.quote(value)}"


def container(path):
    documents = list(load(path))
    spec = next(one["spec"] for one in documents if one["kind"] in ("CronJob", "Job"))
    pod = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
    (found,) = (
        one
        for one in pod.get("initContainers", []) + pod["containers"]
        if one["name"] == "sf-refresh"
    )
    secrets = {one["metadata"]["name"]: one["stringData"] for one in documents if one["kind"] == "Secret"}
    for one in found["env"]:
        reference = one.get("valueFrom", {}).get("secretKeyRef")
        value = secrets[reference["name"]][reference["key"]] if reference else one["value"]
        print(f"{one['name']}={value}")
    print("sf-refresh", *found["args"], sep="\n")


def shown(readme, path):
    lines = {line.strip() for line in open(readme)}
    for line in map(str.strip, open(path)):
        if line and not line.startswith("#") and line not in lines:
            print(line)


def load(path):
    import yaml

    return yaml.safe_load_all(open(path))


{"script": script, "container": container, "shown": shown}[sys.argv[1]](*sys.argv[2:])
