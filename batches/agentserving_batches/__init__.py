"""OpenAI's Batch API behind the front: files and batches of tenants, with a durable queue. One process.

| package | what it does |
|---|---|
| `http/` | answers /v1/files and /v1/batches; the gateway says by a signed grant who asks |
| `work/` | drives each batch from `validating` to its end, and makes its calls through the gateway |
| `store/` | SQLite for the rows of files, batches and lines, a directory for the contents of files |
| `values`, `objects` | pure: what a batch is, and what clients see of it |
| `lines`, `outcomes` | pure: what a line may say, and what an answer means for it |

Who owns a batch: the handler that creates it until its row is committed, then `work.runner`, one task a batch. A
handler that cancels a batch changes its row, and the task sees that. Each change is one transaction, made by the only
thread that has the database, so a process that is killed continues where the rows say. A line's result is in the same
transaction as the counts; a call without a committed result is made again.
"""
