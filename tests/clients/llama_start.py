"""Serve a model with llama.cpp's own server: `python llama_start.py MODEL CONTEXT`.

Runs where xllamacpp is installed, which carries that server inside. Prints where it listens.
"""

import signal
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx = sys.argv[1], int(sys.argv[2])
params.hostnames = ["127.0.0.1"]
# Threads that wait for one another spin: where others work too, one is faster than two.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.fit_params = False
# Several times as fast as the default where a prompt is long and a model is small.
params.n_batch = params.n_ubatch = 2048
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
server = xllamacpp.Server(params)
print(f"listening on {server.listening_address}", flush=True)
signal.pause()
