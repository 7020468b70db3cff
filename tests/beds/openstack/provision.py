"""What the tests need in the cloud: made once, found again afterwards.

Projects `demo` (ample quota) and `small` (two volumes), the user `demo`, Cinder's service user, the catalog in both
styles, an application credential and the volume type.
"""

import json
import os
import time
import urllib.error
import urllib.request

from bed import ADDRESS, GUEST_VIEW, fail

REGION = "RegionOne"


class Api:
    """JSON over HTTP with a token."""

    def __init__(self, token=None):
        self.token = token

    def __call__(self, method, url, body=None):
        deadline = time.monotonic() + 60
        while True:
            status, headers, answer = self.once(method, url, body)
            # A WSGI server listens before its application is loaded.
            if status not in (0, 500, 502, 503) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if not 200 <= status < 300:
            fail(f"{method} {url}: {status} {answer[:300]}")
        return headers, json.loads(answer) if answer else {}

    def once(self, method, url, body):
        headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.59"}
        if self.token:
            headers["X-Auth-Token"] = self.token
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode(errors="replace")
        except OSError as error:
            return 0, {}, str(error)


def log_in(keystone, user, password, project):
    default = {"id": "default"}
    body = {"auth": {
        "identity": {"methods": ["password"], "password": {
            "user": {"name": user, "domain": default, "password": password}}},
        "scope": {"project": {"name": project, "domain": default}}}}
    headers, answer = Api()("POST", f"{keystone}/auth/tokens", body)
    return Api(headers["X-Subject-Token"]), answer["token"]


class Identity:
    def __init__(self, api, keystone):
        self.api = api
        self.keystone = keystone

    def ensure(self, kind, name, **more):
        found = self.api("GET", f"{self.keystone}/{kind}s?name={name}")[1][f"{kind}s"]
        for item in found:
            if more.get("type") in (None, item.get("type")):
                return item["id"]
        made = self.api("POST", f"{self.keystone}/{kind}s", {kind: {"name": name, **more}})[1]
        return made[kind]["id"]

    def grant(self, user, project, role):
        self.api("PUT", f"{self.keystone}/projects/{project}/users/{user}/roles/{role}")

    def endpoints(self, bed):
        """Both styles that are in the field: with the project's id and without."""
        have = {(item["service_id"], item["interface"])
                for item in self.api("GET", f"{self.keystone}/endpoints")[1]["endpoints"]}
        for name, kind, path in (("cinder", "block-storage", "/v3"), ("cinderv3", "volumev3", "/v3/%(project_id)s")):
            service = self.ensure("service", name, type=kind)
            for interface, address in (("public", ADDRESS), ("internal", GUEST_VIEW)):
                if (service, interface) not in have:
                    self.api("POST", f"{self.keystone}/endpoints", {"endpoint": {
                        "service_id": service, "interface": interface, "region_id": REGION,
                        "url": bed.url("cinder", address) + path}})


def credential(api, keystone, user, secret):
    """The owner makes it himself: an administrator may not."""
    url = f"{keystone}/users/{user}/application_credentials"
    for item in api("GET", url)[1]["application_credentials"]:
        if item["name"] == "bed":
            return item["id"]
    made = api("POST", url, {"application_credential": {"name": "bed", "secret": secret}})[1]
    return made["application_credential"]["id"]


def provision(bed, words):
    keystone = bed.url("keystone") + "/v3"
    admin, token = log_in(keystone, "admin", words["admin"], "admin")
    identity = Identity(admin, keystone)
    roles = {name: identity.ensure("role", name) for name in ("admin", "member")}
    projects = {name: identity.ensure("project", name, domain_id="default") for name in ("service", "demo", "small")}
    users = {name: identity.ensure("user", name, domain_id="default", password=words[name]) for name in ("cinder", "demo")}
    identity.grant(users["cinder"], projects["service"], roles["admin"])
    identity.grant(users["demo"], projects["demo"], roles["member"])
    identity.grant(users["demo"], projects["small"], roles["member"])
    identity.endpoints(bed)
    demo, _ = log_in(keystone, "demo", words["demo"], "demo")
    credential_id = credential(demo, keystone, users["demo"], words["credential"])

    cinder = f"{bed.url('cinder')}/v3/{token['project']['id']}"
    volume_types(admin, cinder)
    admin("PUT", f"{cinder}/os-quota-sets/{projects['small']}", {"quota_set": {"volumes": 2, "gigabytes": 3}})
    wait_for_backend(admin, cinder)
    return environment(bed, words, credential_id)


def volume_types(admin, cinder):
    """`sparse`; and `shared` on several hosts, `locked` with LUKS by the front end, `limited` to 100 I/Os a second there."""
    made = {}
    for name, more in (("sparse", {}), ("shared", {"multiattach": "<is> True"}), ("locked", {}), ("limited", {})):
        # osapi_max_limit is 2, so the list may be cut: ask by making.
        status, _, answer = admin.once("POST", f"{cinder}/types", {"volume_type": {
            "name": name, "extra_specs": {"volume_backend_name": "sparse", **more}}})
        if status not in (200, 409):
            fail(f"volume type {name}: {status} {answer[:300]}")
        if status == 200:
            made[name] = json.loads(answer)["volume_type"]["id"]
    if "locked" in made:
        admin("POST", f"{cinder}/types/{made['locked']}/encryption", {"encryption": {
            "provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}})
    if "limited" in made:
        specs = admin("POST", f"{cinder}/qos-specs", {"qos_specs": {
            "name": "limited", "consumer": "front-end", "total_iops_sec": "100", "read_bytes_sec_per_gb": "1000000"}})
        admin("GET", f"{cinder}/qos-specs/{specs[1]['qos_specs']['id']}/associate?vol_type_id={made['limited']}")


def wait_for_backend(admin, cinder):
    """A service is called up before its driver is ready; a reported pool is the proof."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        states = [service["state"] for service in admin("GET", f"{cinder}/os-services")[1]["services"]]
        if states.count("up") >= 2 and admin("GET", f"{cinder}/scheduler-stats/get_pools")[1]["pools"]:
            return
        time.sleep(0.2)
    fail("cinder-volume and cinder-scheduler are not up within 90 s")


def environment(bed, words, credential_id):
    return {
        "OS_AUTH_URL": bed.url("keystone") + "/v3",
        "OS_AUTH_TYPE": "password",
        "OS_USERNAME": "demo",
        "OS_PASSWORD": words["demo"],
        "OS_PROJECT_NAME": "demo",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": REGION,
        "OS_INTERFACE": "public",
        "CINDER_NBD_REAL_CINDER": bed.state,
        "CINDER_NBD_REAL_SMALL_PROJECT": "small",
        "CINDER_NBD_REAL_SHARED_TYPE": "shared",
        "CINDER_NBD_REAL_CREDENTIAL_ID": credential_id,
        "CINDER_NBD_REAL_CREDENTIAL_SECRET": words["credential"],
        "CINDER_NBD_REAL_GUEST_AUTH_URL": bed.url("keystone", GUEST_VIEW) + "/v3",
        "CINDER_NBD_REAL_PORTAL": f"{ADDRESS}:{bed.ports['iscsi']}",
    }
