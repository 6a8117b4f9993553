"""The weights of a model as an engine takes them: whole tensors by the names that its checkpoint has."""

from collections.abc import Iterator

from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from policy_split.models.adapters import is_adapted, merged


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight once, of tied ones the first; of an adapter the model that it is merged into.

    Where FSDP2 has split the model, one tensor at a time is whole, and every process must take all of them.
    """
    whole = merged(model) if is_adapted(model) else model
    once, every = (dict(whole.named_parameters(remove_duplicate=remove)) for remove in (True, False))
    state = {name: value for name, value in whole.state_dict().items() if name in once or name not in every}
    for name, value in revert_weight_conversion(whole, state).items():  # as save_pretrained names them
        yield name, value.full_tensor() if isinstance(value, DTensor) else value
