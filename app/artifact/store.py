"""The models on disk: the served ones, the default, and the one that a request names.

Only manifests are read here.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from app.artifact.directory import Artifact, read_artifact
from app.artifact.manifest import Task
from app.errors import ArtifactError, UnknownModel

PREFERRED_MODEL = "simple-cnn"
"""The default model where none is named."""

_log = logging.getLogger(__name__)


class Store:
    """The served artifacts, by name and version."""

    def __init__(self, artifacts: Sequence[Artifact], default: str | None) -> None:
        """Order the artifacts.

        Args:
            artifacts: the ones to serve.
            default: the model for requests that name none, as `name` or `name/version`; it is
                chosen, as in `read_store`, unless it is named.

        Raises:
            ArtifactError: the default is not among them.
        """
        ordered = sorted(artifacts, key=lambda item: (item.manifest.name, _number(item)))
        self._models: dict[str, dict[str, Artifact]] = {}
        for artifact in ordered:
            manifest = artifact.manifest
            self._models.setdefault(manifest.name, {})[manifest.version] = artifact
        self._named: Artifact | None = None
        if not default:
            return
        try:
            name, _, version = default.partition("/")
            self._named = _pick(self._models, name, version)
        except UnknownModel as exc:
            raise ArtifactError(f"CONVSCOPE_DEFAULT_MODEL={default}: {exc}") from exc

    @cached_property
    def default(self) -> Artifact:
        """The model for requests that name none. If it is chosen, the log tells of it here."""
        return self._named or _pick(self._models, _choose_default(list(self._models)), None)

    @cached_property
    def defaults(self) -> Mapping[Task, Artifact]:
        """The model of each task for requests that name none.

        It is the default model for its own task, and the newest of the first name for any other.
        """
        newest = {
            versions[max(versions, key=int)].manifest.task: versions[max(versions, key=int)]
            for versions in reversed(self._models.values())
        }
        return newest | {self.default.manifest.task: self.default}

    def __iter__(self) -> Iterator[Artifact]:
        """Yield the artifacts by name and ascending version."""
        for versions in self._models.values():
            yield from versions.values()

    def for_task(self, task: Task) -> list[Artifact]:
        """Return the artifacts of a task by name and ascending version."""
        return [artifact for artifact in self if artifact.manifest.task == task]

    def find(
        self, name: str | None = None, version: str | None = None, task: Task | None = None
    ) -> Artifact:
        """Return the artifact that a request names.

        Without a name, it is the default model, or that of a task. Without a version, it is the
        default's version for the default model, and the highest version of any other. An empty
        string counts as none.

        Raises:
            UnknownModel: names the wanted model and the ones that exist.
        """
        if not name:
            default = self.default if task is None else self.defaults.get(task)
            if default is None:
                there = {f"{each.manifest.name} ({each.manifest.task})": None for each in self}
                raise UnknownModel(f"no model here is for {task}; there are: {', '.join(there)}")
            if not version:
                return default
            name = default.manifest.name
        named = self._named
        if not version and named is not None and named.manifest.name == name:
            return named
        return _pick(self._models, name, version)

    def versions(self, name: str) -> list[Artifact]:
        """Return a model's artifacts by ascending version.

        Raises:
            UnknownModel: there is no model of this name.
        """
        _pick(self._models, name, None)
        return list(self._models[name].values())


def read_store(path: Path, models: Sequence[str], default: str | None) -> Store:
    """Read the manifests of a store.

    Without a named default, it is `PREFERRED_MODEL`, or else the first model by name. When it is
    first asked for, the log tells of a choice between several.

    Args:
        path: the directory that holds `<name>/<version>/`.
        models: the ones to serve, as `name` (all its versions) or `name/version`; none means all.
        default: the default model, as `name` or `name/version`, if one is named.

    Raises:
        ArtifactError: the store, or a wanted model, is missing or damaged.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such directory; CONVSCOPE_STORE names the models' store")
    places = [place for place in path.glob("[!.]*/[1-9]*") if place.is_dir()]
    if not places:
        raise ArtifactError(f"{path}: holds no models; CONVSCOPE_STORE names the models' store")
    for wanted in models:
        if not any(_means(wanted, place) for place in places):
            raise ArtifactError(f"{path / wanted}: no such model; CONVSCOPE_MODELS names it")
    if models:
        places = [place for place in places if any(_means(wanted, place) for wanted in models)]
    artifacts = [read_artifact(place) for place in places]
    return Store(artifacts, default)


def _choose_default(names: Sequence[str]) -> str:
    """Return the default of models whose names are in order."""
    if PREFERRED_MODEL in names:
        return PREFERRED_MODEL
    if len(names) > 1:
        _log.warning(
            "%s is the default model, the first by name of %s; CONVSCOPE_DEFAULT_MODEL names "
            "another",
            names[0],
            ", ".join(names),
        )
    return names[0]


def _number(artifact: Artifact) -> int:
    return int(artifact.manifest.version)


def _means(wanted: str, place: Path) -> bool:
    return wanted in {place.parent.name, f"{place.parent.name}/{place.name}"}


def _pick(models: Mapping[str, Mapping[str, Artifact]], name: str, version: str | None) -> Artifact:
    versions = models.get(name)
    if versions is None:
        base, _, wanted = name.partition("/")
        hint = f"; the version is given apart: version={wanted[:16]}" if base in models else ""
        raise UnknownModel(
            f"no model {name[:64]!r}; there are: {', '.join(models) or 'none'}{hint}"
        )
    if not version:
        return list(versions.values())[-1]
    if version not in versions:
        raise UnknownModel(
            f"no version {version[:16]!r} of {name}; there are: {', '.join(versions)}"
        )
    return versions[version]
