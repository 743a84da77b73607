"""What a worker process of Huey notes in its file: tasks run, time of the first, time of the last."""

import struct

NOTE = struct.Struct("=qdd")
