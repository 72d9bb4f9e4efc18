"""Networks of the user: `module:function`, a function that is called with `in_channels` and `num_classes`.

Building one runs its code. A name may therefore come from the user, on the command line or in a recipe,
but never from a checkpoint alone, which may come from anywhere.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from qil_deploy.errors import ConfigError, QilDeployError
from qil_deploy.untrusted_text import excerpt

from .user_errors import describe_error


def is_user_model(name: str) -> bool:
    """Whether a name has the form `module:function`."""
    return ":" in name


def build_user_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Import a module, call its function, and return the network. Runs the code that `name` names.

    Args:
        name: `module:function`; the module is found as Python finds it, `python -m qil_deploy` looks in the current
            folder, too.
        arguments: keyword arguments of the function.

    Raises:
        ConfigError: no such module or function, an error in either, or no network returned.
    """
    module_name, _, function_name = name.partition(":")
    shown = excerpt(repr(name), 200)
    if not all(module_name.split(".")) or not function_name.isidentifier():
        raise ConfigError(f"model {shown} must be MODULE:FUNCTION, for example my_networks:small_cnn.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"model {shown} cannot be imported ({excerpt(str(error), 240)}); install its module, or start "
            "python -m qil_deploy in the folder where it lies."
        ) from error
    except (Exception, SystemExit) as error:  # the module is the user's: a script may even end the program
        raise ConfigError(f"model {shown} cannot be imported: {describe_error(error)}.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"model {shown}: its module has no function {excerpt(repr(function_name))}.")
    try:
        model = function(**arguments)
    except QilDeployError:
        raise
    except (Exception, SystemExit) as error:  # as above
        raise ConfigError(
            f"model {shown} cannot be built with {excerpt(arguments)}: {describe_error(error)}."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {shown} returned {type(model).__name__!r}; it must return a torch.nn.Module.")
    return model
