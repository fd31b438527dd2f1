"""Checks of what `helm template` renders, and of names that several files of infra/ share. Called by scripts/infra-check.

    infra_objects.py rendered NAME FILE FOLDER    each object of a rendering; writes its TOML files to FOLDER/NAME-*.toml
    infra_objects.py values CHART                 each key of values.yaml is in values.schema.json, and used by a template
    infra_objects.py metrics                      each metric of the rules and the dashboard is in docs/METRICS.md
    infra_objects.py expressions FILE             writes the dashboard's expressions as rules that promtool can check
"""

import json
import pathlib
import re
import sys
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = "1.36.0"

# Objects of other projects' APIs: kubernetes-validate has no schema of them.
CUSTOM = {
    "monitoring.coreos.com/v1": {"ServiceMonitor", "PodMonitor", "PrometheusRule"},
    "kueue.x-k8s.io/v1beta1": {"ResourceFlavor", "ClusterQueue", "LocalQueue"},
    "karpenter.sh/v1": {"NodePool"},
    "karpenter.k8s.aws/v1": {"EC2NodeClass"},
}


def fail(problems):
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


def pods(thing):
    """The pod specifications of an object, with the namespace's objects that they name."""
    spec = thing.get("spec", {})
    template = spec.get("template") if isinstance(spec, dict) else None
    return [template["spec"]] if template and "containers" in template.get("spec", {}) else []


def insecure(pod):
    """What a pod of the platform lacks of the Pod Security Standard `restricted`, and of our own rules."""
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod may run as root, or without seccomp"
    if pod.get("enableServiceLinks", True):
        yield "Services become ATTUNE_ variables"
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation", True) or not own.get("readOnlyRootFilesystem") or own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"the container {container['name']} has privileges"
        if not {"requests", "limits"} <= set(container.get("resources", {})):
            yield f"the container {container['name']} has no resources"
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if port is not None and port not in ports:
                yield f"{probe} names the port {port}, which the container does not have"


def unresolved(things):
    """References between the objects of one rendering that lead nowhere."""
    names = {(thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"]) for thing in things}
    for thing in things:
        where, space = f"{thing['kind']} {thing['metadata']['name']}", thing["metadata"].get("namespace")
        wanted = []
        for pod in pods(thing):
            if "serviceAccountName" in pod:
                wanted.append(("ServiceAccount", space, pod["serviceAccountName"]))
            wanted += [("ConfigMap", space, v["configMap"]["name"]) for v in pod.get("volumes", []) if "configMap" in v]
        if "roleRef" in thing:
            role = thing["roleRef"]
            wanted.append((role["kind"], space if role["kind"] == "Role" else None, role["name"]))
            wanted += [(s["kind"], s["namespace"], s["name"]) for s in thing["subjects"]]
        for one in wanted:
            if one not in names:
                yield f"{where}: there is no {one[0]} {one[2]} in {one[1]}"


def rendered(name, file, folder):
    import kubernetes_validate

    things = [thing for thing in yaml.safe_load_all(pathlib.Path(file).read_text()) if thing]
    problems, valid, custom, seen = [], 0, 0, set()
    for thing in things:
        kind, title = thing["kind"], f"{thing['kind']} {thing['metadata']['name']}"
        key = (thing["apiVersion"], kind, thing["metadata"].get("namespace"), thing["metadata"]["name"])
        if key in seen:
            problems.append(f"{title}: it is rendered twice")
        seen.add(key)
        if kind in CUSTOM.get(thing["apiVersion"], ()):
            custom += 1
        else:
            try:
                kubernetes_validate.validate(thing, KUBERNETES, strict=True)
                valid += 1
            except kubernetes_validate.ValidationError as wrong:
                problems.append(f"{title}: {'.'.join(str(part) for part in wrong.path)}: {wrong.message}")
        problems += [f"{title}: {problem}" for pod in pods(thing) for problem in insecure(pod)]
        for entry, text in (thing.get("data") or {}).items() if kind == "ConfigMap" else ():
            if entry.endswith(".toml"):
                try:
                    tomllib.loads(text)
                except tomllib.TOMLDecodeError as wrong:
                    problems.append(f"{title}: {entry}: {wrong}\n{text}")
                (pathlib.Path(folder) / f"{name}-{entry}").write_text(text)
            if entry.endswith(".json"):
                json.loads(text)
    problems += unresolved(things)
    print(valid, custom)
    fail([f"{name}: {problem}" for problem in problems])


def values(chart):
    """Compares the keys of values.yaml with the schema's, and looks for each in a template."""
    chart = pathlib.Path(chart)
    schema = json.loads((chart / "values.schema.json").read_text())
    templates = "".join(path.read_text() for path in (chart / "templates").iterdir())
    problems = []

    def walk(value, known, path):
        if not isinstance(value, dict) or known.get("additionalProperties") is not False:
            return
        for key in sorted(set(value) ^ set(known.get("properties", {}))):
            if key in value:
                problems.append(f"values.schema.json has no {'.'.join([*path, key])}")
            elif not path and key != "global":
                problems.append(f"values.yaml has no {key}")
        for key, below in value.items():
            walk(below, known.get("properties", {}).get(key, {}), [*path, key])
            if not re.search(rf"\.{re.escape(path[-1])}\b|with \.|range \.", templates) if path else f".Values.{key}" not in templates:
                problems.append(f"no template uses {'.'.join([*path, key])}")

    walk(yaml.safe_load((chart / "values.yaml").read_text()), schema, [])
    fail(problems)


def expressions():
    dashboard = json.loads((ROOT / "infra/monitoring/dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return [(panel["title"], target["expr"].replace("$__rate_interval", "5m")) for panel in panels for target in panel["targets"]]


def documented():
    """The names that can be queried, with the suffixes of histograms."""
    names = set()
    for line in (ROOT / "docs/METRICS.md").read_text().splitlines():
        if found := re.match(r"\| `([a-z_]+)` \| (counter|gauge|histogram) \|", line):
            suffixes = ["_bucket", "_sum", "_count"] if found[2] == "histogram" else [""]
            names |= {found[1] + suffix for suffix in suffixes}
    return names


def metrics():
    rules = [rule for group in yaml.safe_load((ROOT / "infra/monitoring/alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    tests = (ROOT / "infra/monitoring/alerts.test.yaml").read_text()
    known, problems = documented(), []
    if len(known) < 40:
        problems.append("docs/METRICS.md: its tables could not be read")
    used = set()
    for where, expr in [(rule["alert"], rule["expr"]) for rule in rules] + expressions():
        for name in re.findall(r"\b(?:attune|process)_[a-z_]+\b", expr):
            used.add(name)
            if name not in known:
                problems.append(f"{where}: docs/METRICS.md has no {name}")
    for rule in rules:
        if f'alertname="{rule["alert"]}"' not in tests:
            problems.append(f"alerts.test.yaml has no block in which {rule['alert']} fires")
        if not {"summary", "description"} <= set(rule["annotations"]):
            problems.append(f"{rule['alert']}: it has no summary or no description")
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in used}
    base = {re.sub("_(bucket|sum|count)$", "", name) for name in known}
    missing = base - shown - {"process_threads", "process_start_time_seconds"}
    problems += [f"neither a rule nor the dashboard uses {name}" for name in sorted(missing)]
    print(len(used))
    fail(problems)


def write_expressions(file):
    rules = [{"record": f"dashboard:expression:{i}", "expr": expr} for i, (_, expr) in enumerate(expressions())]
    pathlib.Path(file).write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    print(len(rules))


COMMANDS = {"rendered": rendered, "values": values, "metrics": metrics, "expressions": write_expressions}
if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
