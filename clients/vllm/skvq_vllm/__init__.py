# SPDX-License-Identifier: Apache-2.0
"""vLLM with its prefix cache, or all of its keys and values, in skvqd. docs/vllm.md says how to use it."""
from __future__ import annotations

NAME = "SkvqdConnector"


def register() -> None:
    """Makes ``"kv_connector": "SkvqdConnector"`` known to vLLM, and the attention of its mode "attend".

    The entry point of the group ``vllm.general_plugins``: vLLM calls it in every process, perhaps
    more than once. It imports nothing of the plugin. A server that does not ask for the mode is given
    vLLM's own attention by the name that is registered here; one that does not ask for the connector
    is not touched otherwise.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    try:
        KVConnectorFactory.register_connector(NAME, "skvq_vllm.connector", NAME)
    except ValueError:
        pass  # it is known already
    register_backend(AttentionBackendEnum.CPU_ATTN, "skvq_vllm.attend.Backend")
