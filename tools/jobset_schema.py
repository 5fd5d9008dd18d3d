"""Makes tests/goldens/jobset.json.gz: what the released JobSet custom-resource definition allows.

    python tools/jobset_schema.py VERSION jobset.x-k8s.io_jobsets.yaml

The file is `config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml` of kubernetes-sigs/jobset (Apache-2.0) at the tag
VERSION, such as v0.12.0. Descriptions are left out.
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).resolve().parents[1] / "tests" / "goldens" / "jobset.json.gz"


def without_descriptions(schema: Any, names: bool = False) -> Any:
    """`names`: the keys are those of fields, among which `description` is one like another."""
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value, key == "properties" and not names)
        for key, value in schema.items()
        if names or key != "description"
    }


def main(version: str, path: str) -> None:
    data = Path(path).read_bytes()
    (served,) = yaml.safe_load(data)["spec"]["versions"]
    about = {
        "source": f"https://github.com/kubernetes-sigs/jobset/blob/{version}/config/components/crd/bases/{Path(path).name}",
        "version": version,
        "sha256": hashlib.sha256(data).hexdigest(),
        "api": served["name"],
        "schema": without_descriptions(served["schema"]["openAPIV3Schema"]),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(gzip.compress(json.dumps(about, sort_keys=True).encode(), mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
