#!/usr/bin/env python
"""The node's command line: `manage.py up` runs a node, `manage.py help` lists the rest."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "k1node.settings")
    execute_from_command_line(sys.argv)
