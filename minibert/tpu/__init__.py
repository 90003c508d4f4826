"""The same model in jax.numpy, for Cloud TPUs: training, prediction, export and compilation ahead of time.

Needs JAX, which is an extra; nothing outside this folder imports it.
"""

from minibert.errors import BackendError

try:
    import jax  # noqa: F401 - asked for once, here
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise BackendError(
        'TPUs need JAX, which is not installed: pip install ".[tpu]" in the checkout, on a Cloud TPU; elsewhere '
        'pip install ".[jax]"'
    ) from None
