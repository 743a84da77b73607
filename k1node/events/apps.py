from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "k1node.events"
    label = "events"
