"""Many inputs to many answers, without a server: what `handlergen map` and `LocalModel.map` run.

```
input ─▶ rows ─▶ chunks ─▶ preparation (processes, threads) ─▶ predict (device lock) ─▶ postprocess ─▶ output, journal
```
"""
