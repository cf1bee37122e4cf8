"""`scripts/gen-protos`: writes citadel_py/_proto from every file below proto/.

    scripts/gen-protos            write what differs, remove what has no source any more
    scripts/gen-protos --check    write nothing; exit code 1 and a list where something differs

protoc takes the paths below proto/ for names of Python packages. Those names (`envoy`, `istio`) belong to others on
PyPI, so the imports between our own files are rewritten to `citadel_py._proto`; imports of `google` stay.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from _environment import PYTHON, ROOT, TEST, Progress, SetupError, ensure

SOURCE = ROOT / "proto"
TARGET = ROOT / "citadel_py" / "_proto"
PACKAGE = "citadel_py._proto"
INIT = b'"""Generated from proto/ by scripts/gen-protos. Never edited."""\n'


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: scripts/gen-protos [--check]", file=sys.stderr)
        return 2
    _enter_environment(arguments)
    wanted, found = generate(SOURCE), read_tree(TARGET)
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if not arguments:
        write_tree(TARGET, wanted, differing)
    for name in differing:
        print(f"{'differs' if arguments else 'written' if name in wanted else 'removed'}: {TARGET.name}/{name}")
    return 1 if arguments and differing else 0


def _enter_environment(arguments: Sequence[str]) -> None:
    """Goes on in the clone's own environment when this interpreter has no generators."""
    if importlib.util.find_spec("grpc_tools") is not None:
        return
    if Path(sys.prefix) == TEST.path:
        raise SetupError("grpcio-tools is missing in the environment", f"remove {TEST.path} and run this again")
    ensure(TEST, Progress(total=1))
    script = str(ROOT / "scripts" / "gen-protos")
    os.execv(PYTHON, [str(PYTHON), script, *arguments])  # noqa: S606 - no shell is wanted


def generate(source: Path) -> dict[str, bytes]:
    """Every file that belongs below the package, by its path there."""
    protos = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.proto"))
    packages = {name.partition("/")[0] for name in protos if "/" in name}
    if misplaced := [name for name in protos if "/" not in name]:
        raise SetupError(f"not in the folder of a package: {', '.join(misplaced)}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        descriptors = out / "descriptors"
        _protoc(source, protos, f"--python_out={out}", f"--mypy_out={out}", f"--descriptor_set_out={descriptors}")
        if services := _with_services(descriptors.read_bytes()):
            _protoc(source, services, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}")
        files = {name: rewrite(data, packages) for name, data in read_tree(out).items()}
    return files | dict.fromkeys(_inits(files), INIT)


def _protoc(source: Path, protos: Iterable[str], *outputs: str) -> None:
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    # googleapis-common-protos installs google/rpc/*.proto beside its modules
    include = [f"-I{source}", f"-I{sysconfig.get_path('purelib')}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *include, *plugins, *outputs, *protos]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"protoc failed:\n{done.stderr}")


def _with_services(descriptors: bytes) -> list[str]:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet  # noqa: PLC0415 - only the environment has it

    return [file.name for file in FileDescriptorSet.FromString(descriptors).file if file.service]


def rewrite(data: bytes, packages: Iterable[str]) -> bytes:
    """Moves imports of our own packages, and the module name that messages carry, below PACKAGE."""
    names = "|".join(sorted(map(re.escape, packages)))
    text = re.sub(rf"(?m)^(\s*(?:from|import) )(?=(?:{names})[. ])", rf"\g<1>{PACKAGE}.", data.decode())
    return re.sub(rf"(DescriptorsAndMessages\(DESCRIPTOR, ')(?=(?:{names})\.)", rf"\g<1>{PACKAGE}.", text).encode()


def _inits(files: Iterable[str]) -> set[str]:
    folders = {parent for name in files for parent in Path(name).parents}
    return {(folder / "__init__.py").as_posix() for folder in folders}


def read_tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*.py*") if path.suffix in (".py", ".pyi"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_tree(folder: Path, files: Mapping[str, bytes], changed: Iterable[str]) -> None:
    for name in changed:
        path = folder / name
        if name in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        else:
            path.unlink()
