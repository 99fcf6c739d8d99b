"""Prints what a recipe in YAML runs, or whether the README shows a recipe.

extract.py gitlab FILE          the script of the job
extract.py github FILE STEP     the script of a step, by its number
extract.py kubernetes FILE      what the CronJob's container gets: NAME=VALUE and arguments, one a line
extract.py shown README FILE    the lines of a recipe that the README lacks
"""

import sys


def gitlab(path):
    (job,) = load(path)[0].values()
    print("\n".join(job["script"]))


def github(path, step):
    (job,) = load(path)[0]["jobs"].values()
    print(job["steps"][int(step)]["run"])


def kubernetes(path):
    job = next(one for one in load(path) if one["kind"] == "CronJob")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    print("\n".join(f"{one['name']}={one['value']}" for one in container["env"]))
    print("sf-refresh", *container["args"], sep="\n")


def shown(readme, path):
    lines = {line.strip() for line in open(readme)}
    for line in map(str.strip, open(path)):
        if line and line != "set -eu" and not line.startswith("#") and line not in lines:
            print(line)


def load(path):
    import yaml

    return list(yaml.safe_load_all(open(path)))


{"gitlab": gitlab, "github": github, "kubernetes": kubernetes, "shown": shown}[sys.argv[1]](
    *sys.argv[2:]
)
