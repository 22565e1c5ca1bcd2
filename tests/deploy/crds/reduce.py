"""Takes the schema out of a CustomResourceDefinition: `python reduce.py CRD.yaml...`.

It writes `<kind>.json.gz` beside itself, without descriptions, which are most of the text.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    """Write the schema of the first version of each definition."""
    for name in sys.argv[1:]:
        definition = yaml.safe_load(Path(name).read_text())["spec"]
        [version] = definition["versions"]
        text = json.dumps(without_descriptions(version["schema"]["openAPIV3Schema"]))
        target = Path(__file__).with_name(f"{definition['names']['kind']}.json.gz")
        target.write_bytes(gzip.compress(text.encode(), mtime=0))


def without_descriptions(schema: Any) -> Any:
    """Return a schema without its texts; a property called `description` stays."""
    if isinstance(schema, list):
        return [without_descriptions(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: without_descriptions(part)
        for name, part in schema.items()
        if name != "description" or isinstance(part, dict)
    }


if __name__ == "__main__":
    main()
