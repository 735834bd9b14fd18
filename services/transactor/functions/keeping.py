"""A compiler that looks first whether it has a module's code already, and keeps what it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tallybus.services.transactor.functions.codefiles import CodeFiles, key_of
from tallybus.services.transactor.functions.compiler import Code
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.handler import CompiledFunction


class CodeMaker(Protocol):
    """`Compiler`, or what stands for it in a test."""

    niceness: int

    def compile(self, binary: bytes, seconds: float) -> Code: ...
    def rest(self) -> None: ...
    def stop(self) -> None: ...


class KeepingCompiler:
    """Makes functions of modules: `load` links code into the sandbox that will call it.

    `files` is None where nothing is to be kept. One thread uses it at a time.
    """

    def __init__(
        self,
        compiler: CodeMaker,
        load: Callable[[bytes, Code], CompiledFunction],
        files: CodeFiles | None,
    ) -> None:
        self._compiler = compiler
        self._load = load
        self._files = files

    def compile(self, binary: bytes, seconds: float) -> CompiledFunction:
        """Raises what `Compiler.compile` does."""
        if self._files is None:
            return self._load(binary, self._compiler.compile(binary, seconds))
        key = key_of(binary)
        kept = self._files.load(key)
        if kept is not None:
            try:
                return self._load(binary, kept)
            except InvalidFunction:
                # Of another processor, for example: it is made again.
                self._files.drop(key)
        code = self._compiler.compile(binary, seconds)
        function = self._load(binary, code)
        self._files.store(key, code)
        return function

    def rest(self) -> None:
        """Nothing is to be done for a while."""
        self._compiler.rest()

    def stop(self) -> None:
        """End what is being compiled, and all that would come."""
        self._compiler.stop()
