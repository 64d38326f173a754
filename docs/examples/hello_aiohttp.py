"""A small aiohttp application that knows nothing of uringloop.

Run it: python -m uringloop docs/examples/hello_aiohttp.py [HOST [PORT]]
Try it: curl http://127.0.0.1:8080/
"""

import argparse
import os

from aiohttp import web


async def hello(request: web.Request) -> web.Response:
    name = request.match_info.get("name", "world")
    return web.Response(text=f"Hello, {name}!\n")


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type=request.content_type)


def make_app() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/", hello), web.get("/{name}", hello), web.post("/echo", echo)])
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host", nargs="?", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("port", nargs="?", default=os.environ.get("PORT", "8080"), type=int)
    arguments = parser.parse_args()
    web.run_app(make_app(), host=arguments.host, port=arguments.port)
