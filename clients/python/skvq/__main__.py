# SPDX-License-Identifier: Apache-2.0
"""python -m skvq doctor"""
import logging
import sys

from . import doctor

if __name__ == "__main__":
    logging.getLogger("skvq").addHandler(logging.NullHandler())
    if sys.argv[1:2] != ["doctor"]:
        print("usage: python -m skvq doctor [--socket PATH] [--json]", file=sys.stderr)
        sys.exit(2)
    sys.exit(doctor.main(sys.argv[2:]))
