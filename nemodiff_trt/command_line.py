"""Runs a Typer application so that every failure is one line on standard error and an exit code.

Exit 2: bad input. Exit 1: everything else that is refused on purpose. Exit 130: interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nemodiff_trt.errors import InvalidInputError, NemodiffError

if TYPE_CHECKING:
    import typer

Arguments = TypeVar("Arguments")

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run_app(app: typer.Typer, program: str, arguments: Sequence[str]) -> int:
    """Run `app` and return the exit code.

    Args:
        app: the application.
        program: its name in help texts and error lines.
        arguments: without the program's name; none at all asks for help.
    """
    import typer

    command = typer.main.get_command(app)
    try:
        result = command.main(args=list(arguments) or ["--help"], prog_name=program, standalone_mode=False)
    except InvalidInputError as error:
        return _fail(program, str(error), EXIT_BAD_INPUT)
    except NemodiffError as error:
        return _fail(program, str(error), EXIT_FAILURE)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(program, "interrupted", EXIT_INTERRUPTED)
    except typer.TyperException as error:
        return _fail(program, _usage_message(error, arguments), error.exit_code)
    return result if isinstance(result, int) else 0


def _usage_message(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """What Typer says, with the value it could not use, which it leaves out."""
    message = error.format_message()
    for option in getattr(getattr(error, "param", None), "opts", ()):
        for index, argument in enumerate(arguments):
            name, separator, value = argument.partition("=")
            if name == option and (separator or index + 1 < len(arguments)):
                given = value if separator else arguments[index + 1]
                reason = message.partition("': ")[2] or message
                return f"{option}: got {given!r}, allowed: {reason}"
    return message


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def dataclass_command(name: str, arguments: type[Arguments], run: Callable[[Arguments], Any]) -> Callable[..., Any]:
    """A command whose options are the fields of a dataclass: Typer reads them from a function's signature.

    Args:
        name: of the command.
        arguments: dataclass; every field is annotated `Annotated[type, typer.Option(...)]`.
        run: gets the filled dataclass; its docstring is the help text.
    """
    types = typing.get_type_hints(arguments, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=types[field.name],
        )
        for field in dataclasses.fields(arguments)  # type: ignore[arg-type]
    ]
    # In the help, what has to be given comes before what may be, wherever a base class declares it.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)

    def command(**values: Any) -> Any:
        return run(arguments(**values))

    command.__name__, command.__doc__ = name, run.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = types
    return command
