//! Classification of IP addresses: user-provided URLs may only reach public ones.
//!
//! Source: IANA's IPv4 and IPv6 special-purpose address registries; RFC 6890, RFC 4291 (mapped, compatible), RFC 6052
//! and RFC 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP), RFC 9637 (documentation). Addresses
//! that embed an IPv4 address are all refused: a gateway decides whether and where they lead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The networks that are not public, and the kind of their addresses. The first match applies.
const V4: [(Ipv4Net, &str); 20] = [
    (v4([0, 0, 0, 0], 8), "this network's"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "carrier-grade NAT"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([168, 63, 129, 16], 32), "cloud metadata"), // Azure's, in the middle of public space
    (v4([169, 254, 0, 0], 16), "link-local or cloud metadata"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "protocol assignment"),
    (v4([192, 0, 2, 0], 24), "documentation"),
    (v4([192, 31, 196, 0], 24), "AS112"),
    (v4([192, 52, 193, 0], 24), "multicast tunnelling"),
    (v4([192, 88, 99, 0], 24), "6to4 relay"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([192, 175, 48, 0], 24), "AS112"),
    (v4([198, 18, 0, 0], 15), "benchmarking"),
    (v4([198, 51, 100, 0], 24), "documentation"),
    (v4([203, 0, 113, 0], 24), "documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255, 255, 255, 255], 32), "broadcast"),
    (v4([240, 0, 0, 0], 4), "reserved"),
];

/// The IPv6 networks, as in [`V4`]. Other addresses are public in `2000::/3` and reserved elsewhere.
const V6: [(Ipv6Net, &str); 20] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "IPv4-compatible"),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "NAT64"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "NAT64"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignment"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4"),
    (v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), "AS112"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (v6([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16), "reserved"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "private"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

/// The network from which IANA allocates public IPv6 addresses.
const PUBLIC_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// Returns the kind of an address that is not public; `None`: it is public.
#[must_use]
pub fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => V4.iter().find(|(network, _)| network.contains(&address)).map(|(_, kind)| *kind),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let named = V6.iter().find(|(network, _)| network.contains(&address)).map(|(_, kind)| *kind);
    named.or_else(|| is_isatap(address).then_some("ISATAP")).or_else(|| {
        let public = PUBLIC_V6.contains(&address);
        (!public).then_some("reserved")
    })
}

/// Returns whether the lower half is `::5efe:a.b.c.d`: under any prefix, a tunnel to that IPv4 address.
fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., high, low, _, _] = address.segments();
    matches!(high, 0 | 0x200) && low == 0x5efe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<&'static str> {
        special(text.parse().unwrap())
    }

    #[test]
    fn each_network_is_left_where_it_ends() {
        for (inside, before, after) in [
            ("10.0.0.0", "9.255.255.255", "11.0.0.0"),
            ("100.127.255.255", "100.63.255.255", "100.128.0.0"),
            ("127.255.255.255", "126.255.255.255", "128.0.0.0"),
            ("169.254.169.254", "169.253.255.255", "169.255.0.0"),
            ("172.31.255.255", "172.15.255.255", "172.32.0.0"),
            ("192.168.0.1", "192.167.255.255", "192.169.0.0"),
            ("198.19.255.255", "198.17.255.255", "198.20.0.0"),
            ("224.0.0.1", "223.255.255.255", "223.255.255.254"),
            ("2002::1", "2001:4860:4860::8888", "2003::1"),
            ("2001:db8::1", "2001:db7:ffff::1", "2001:db9::1"),
        ] {
            assert!(kind(inside).is_some(), "{inside}");
            assert_eq!((kind(before), kind(after)), (None, None), "around {inside}");
        }
    }

    #[test]
    fn an_address_in_an_address_is_refused_by_its_kind() {
        assert_eq!(kind("::ffff:8.8.8.8"), Some("IPv4-mapped"));
        assert_eq!(kind("::8.8.8.8"), Some("IPv4-compatible"));
        assert_eq!(kind("64:ff9b::808:808"), Some("NAT64"));
        assert_eq!(kind("2002:808:808::1"), Some("6to4"));
        assert_eq!(kind("2001:0:808:808::1"), Some("Teredo"));
        assert_eq!(kind("2a00:1450:4001:800:0:5efe:808:808"), Some("ISATAP"));
        assert_eq!(kind("2a00:1450:4001:800::200e"), None);
        assert_eq!(kind("4000::1"), Some("reserved"));
    }
}
