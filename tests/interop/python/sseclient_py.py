"""sseclient-py over requests: it reads one response, and this script has the loop around it."""

import time

import requests
import sseclient

import report

last_id = ""
delay = 3.0

while True:
    headers = {"Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    try:
        response = requests.get(report.url, headers=headers, stream=True)
        if response.status_code != 200:
            report.closed(f"status {response.status_code}")
        for event in sseclient.SSEClient(response).events():
            if event.id:
                last_id = event.id
            if event.retry:
                delay = int(event.retry) / 1000
            report.event(event.event, event.data, event.id)
            if event.event == report.last:
                report.closed("left")
    except requests.RequestException as e:
        report.error(e)
    report.again()
    time.sleep(delay)
