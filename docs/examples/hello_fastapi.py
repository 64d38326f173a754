"""A small FastAPI application that knows nothing of uringloop; uvicorn is told which loop to run it on.

Run it: uvicorn --app-dir docs/examples --loop uringloop:new_event_loop hello_fastapi:app
Try it: curl http://127.0.0.1:8000/
"""

from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Order(BaseModel):
    article: str
    pieces: int
    price: float


@app.get("/")
async def hello(name: str = "world") -> dict[str, str]:
    return {"hello": name}


@app.post("/orders")
async def place_order(order: Order) -> dict[str, float]:
    return {"total": order.pieces * order.price}


@app.get("/count")
async def count(upto: int = 10) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(1, upto + 1):
            yield f"{number}\n"

    return StreamingResponse(lines(), media_type="text/plain")
