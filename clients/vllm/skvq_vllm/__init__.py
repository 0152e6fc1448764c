# SPDX-License-Identifier: Apache-2.0
"""vLLM with its prefix cache in skvqd. docs/vllm.md says how to use it."""
from __future__ import annotations

NAME = "SkvqdConnector"


def register() -> None:
    """Makes ``"kv_connector": "SkvqdConnector"`` known to vLLM.

    The entry point of the group ``vllm.general_plugins``: vLLM calls it in every process, perhaps
    more than once. It imports nothing of the plugin; a server that does not ask for the connector
    is not touched.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    try:
        KVConnectorFactory.register_connector(NAME, "skvq_vllm.connector", NAME)
    except ValueError:
        pass  # it is known already
