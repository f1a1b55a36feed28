//! How old a response is, and whether that is too old (RFC 9111 §4.2).

use crate::scene::*;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_1_explicit_lifetimes() {
    let scene = Scene::new().await;
    scene
        .check_all(&[
            ("", 1, Fetched),
            ("Date: {0}", 1, Fetched),
            ("Cache-Control: max-age=10", 9, Hit),
            ("Cache-Control: max-age=10", 10, Fetched),
            ("Cache-Control: max-age=0", 1, Fetched),
            ("Cache-Control: max-age=0", 0, Fetched),
            ("Cache-Control: MaX-aGe=10", 9, Hit),
            ("Cache-Control: max-age=10\nExpires: {-10}", 1, Hit),
            ("Cache-Control: max-age=10\nExpires: 0", 1, Hit),
            ("Cache-Control: max-age=0\nExpires: {+100}", 1, Fetched),
            ("Cache-Control: s-maxage=10", 9, Hit),
            ("Cache-Control: s-maxage=10\nExpires: {-10}", 9, Hit),
            ("Cache-Control: max-age=1, s-maxage=10", 9, Hit),
            ("Cache-Control: s-maxage=1, max-age=10", 5, Fetched),
            ("Cache-Control: max-age=1\nCache-Control: s-maxage=10", 9, Hit),
            ("Cache-Control: s-maxage=0\nCache-Control: max-age=10", 0, Fetched),
            ("Expires: {+10}\nDate: {0}", 9, Hit),
            ("Expires: {+10}\nDate: {0}", 10, Fetched),
            ("Expires: {+10}", 9, Hit),
            ("Expires: {0}\nDate: {0}", 0, Fetched),
            ("Expires: {-10}\nDate: {0}", 0, Fetched),
            ("Expires: {+10}\nExpires: {+10}", 0, Fetched),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_1_malformed_freshness_is_stale() {
    let scene = Scene::new().await;
    for value in [
        "max-age=",
        "max-age",
        "max-age=-1",
        "max-age=1.5",
        "max-age=10s",
        "max-age='10'",
        "max-age=\"10",
        "max-age = 10",
        "max-age=a10",
        "max-age=1 0",
        "max-age: 10",
        "extension=\"max-age=10\"",
        "extension=\", max-age=10, \"",
        "max-age=10, max-age=0",
        "max-age=0, max-age=10",
    ] {
        scene.check(&format!("Cache-Control: {value}"), "", 1, Fetched).await;
        scene.check(&format!("Cache-Control: {value}\nExpires: {{-10}}"), "", 1, Fetched).await;
    }
    for value in [
        "max-age=0010",
        "max-age=\"10\"",
        "max-age=2147483648",
        "max-age=99999999999999999999",
        "a, max-age=10,",
        ",, max-age=10",
        "a=\"x, max-age=0\", max-age=10",
        "max-age=10, x=\"y\\\"\"",
        "max-age=10, max-age=20",
        "other=1;foo=2, max-age=10",
    ] {
        scene.check(&format!("Cache-Control: {value}"), "", 9, Hit).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_5_6_7_the_three_date_forms_and_nothing_else() {
    let scene = Scene::new().await;
    for expires in [
        "Thu, 18 Aug 2050 02:01:18 GMT",
        "THU, 18 AUG 2050 02:01:18 GMT",
        "thu, 18 aug 2050 02:01:18 gmt",
        "Thursday, 18-Aug-50 02:01:18 GMT",
        "Thu Aug 18 02:01:18 2050",
        "Thu Aug  8 02:01:18 2050",
        "Mon Aug 18 02:01:18 2050",
        "Sat, 18 Aug 2286 02:01:18 GMT",
        "Wed, 18 Aug 2427 02:01:18 GMT",
    ] {
        scene.check(&format!("Expires: {expires}\nDate: {{0}}"), "", 60, Hit).await;
    }
    for expires in [
        "0",
        "-1",
        "now",
        "Thu, 18 Aug 2050 02:01:18 UTC",
        "Thu, 18 Aug 2050 02:01:18 AEST",
        "Thu, 18 Aug 50 02:01:18 GMT",
        "Thu 18 Aug 2050 02:01:18 GMT",
        "Thu, 18  Aug  2050 02:01:18 GMT",
        "Thu, 18-Aug-2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 2:01:18 GMT",
        "Thu, 18 Aug 2050 02.01.18 GMT",
        "Thu, 18 Aug 2050 02:01 GMT",
        "18 Aug 2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 02:01:18",
        "Thu, 18 Aug 2050 26:01:18 GMT",
        "Thu, 31 Feb 2050 02:01:18 GMT",
        "4102444800",
        "",
    ] {
        scene.check(&format!("Expires: {expires}\nDate: {{0}}"), "", 0, Fetched).await;
        scene.check(&format!("Cache-Control: max-age=9\nExpires: {expires}"), "", 1, Hit).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_3_the_age_that_a_response_brings_counts() {
    let scene = Scene::new().await;
    scene
        .check_all(&[
            ("Cache-Control: max-age=100\nAge: 50", 40, Hit),
            ("Cache-Control: max-age=100\nAge: 50", 50, Fetched),
            ("Cache-Control: max-age=100\nAge: 100", 0, Fetched),
            ("Cache-Control: max-age=100\nAge: 50, 200", 40, Hit),
            ("Cache-Control: max-age=100\nAge: 50\nAge: 200", 40, Hit),
            ("Cache-Control: max-age=100\nAge: 200, 50", 0, Fetched),
            ("Cache-Control: max-age=100\nAge: 200\nAge: 50", 0, Fetched),
            ("Cache-Control: max-age=100\nAge: abc", 99, Hit),
            ("Cache-Control: max-age=100\nAge: -50", 99, Hit),
            ("Cache-Control: max-age=100\nAge: 99.9", 99, Hit),
            ("Cache-Control: max-age=100\nAge: 7200;foo=bar", 99, Hit),
            ("Cache-Control: max-age=100\nAge: 0", 99, Hit),
            ("Cache-Control: max-age=100\nAge: 2147483648", 0, Fetched),
            ("Cache-Control: max-age=100\nAge: 99999999999999999999999", 0, Fetched),
            ("Expires: {+100}\nDate: {0}\nAge: 60", 30, Hit),
            ("Expires: {+100}\nDate: {0}\nAge: 60", 41, Fetched),
            ("CDN-Cache-Control: max-age=100\nAge: 60", 41, Fetched),
            ("Cache-Control: s-maxage=100\nAge: 60", 41, Fetched),
            // A Date in the past is an age; one in the future is none.
            ("Cache-Control: max-age=100\nDate: {-60}", 39, Hit),
            ("Cache-Control: max-age=100\nDate: {-60}", 41, Fetched),
            ("Cache-Control: max-age=100\nDate: {+60}", 99, Hit),
            ("Cache-Control: max-age=100\nDate: {-60}\nAge: 80", 21, Fetched),
            ("Cache-Control: max-age=100\nDate: not a date", 99, Hit),
            ("Expires: {+100}\nDate: not a date", 99, Hit),
            ("Expires: {+100}\nDate: {-60}", 39, Hit),
            ("Expires: {+100}\nDate: {+60}", 41, Fetched),
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_3_the_delay_of_a_response_is_part_of_its_age() {
    use crate::support::*;
    let origin = Origin::start(|_, _| async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        page(200, &[("cache-control", "max-age=10"), ("age", "3")], "slow")
    })
    .await;
    let stage = Stage::before(&origin).await;
    stage.get("/").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(stage.get("/").await.header("age"), "9");
    tokio::time::advance(Duration::from_secs(1)).await;
    stage.get("/").await;
    assert_eq!(origin.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_2_heuristic_freshness_for_the_statuses_that_permit_it() {
    let scene = Scene::with(|setting| setting.rules.store_server_errors = true).await;
    let modified = "Date: {0}\nLast-Modified: {-1000}";
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414] {
        let expected = if status < 300 { Validated } else { Fetched };
        scene.check(&format!("{status}\n{modified}"), "", 99, Hit).await;
        scene.check(&format!("{status}\n{modified}"), "", 101, expected).await;
    }
    for status in [201, 202, 299, 302, 303, 307, 400, 403, 418, 499, 500, 503, 599] {
        let expected = Fetched;
        scene.check(&format!("{status}\n{modified}"), "", 11, expected).await;
    }
    for status in [201, 299, 403, 499] {
        scene.check(&format!("{status}\nCache-Control: public\n{modified}"), "", 99, Hit).await;
    }
    scene
        .check_all(&[
            ("Date: {0}\nLast-Modified: {0}", 0, Validated),
            ("Date: {0}\nLast-Modified: {+1000}", 0, Validated),
            ("Date: {0}\nLast-Modified: rubbish", 0, Validated),
            ("Last-Modified: {-1000}", 99, Hit),
            ("Last-Modified: {-1000}\nCache-Control: max-age=0", 0, Validated),
            ("Last-Modified: {-1000}\nExpires: 0", 0, Validated),
            // A guess never lasts longer than a day.
            ("Last-Modified: {-100000000}", 86_399, Hit),
            ("Last-Modified: {-100000000}", 86_401, Validated),
        ])
        .await;
    let off = Scene::with(|setting| setting.rules.heuristic = None).await;
    off.check("Last-Modified: {-1000}", "", 0, Validated).await;
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_any_final_status_with_explicit_freshness() {
    let scene = Scene::new().await;
    for status in [
        200, 201, 202, 203, 204, 299, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 414, 418,
        421, 451, 499,
    ] {
        scene.check(&format!("{status}\nCache-Control: max-age=10"), "", 9, Hit).await;
        scene.check(&format!("{status}\nExpires: {{+10}}"), "", 9, Hit).await;
        scene.check(&format!("{status}\nCache-Control: max-age=10"), "", 10, Fetched).await;
        scene.check(&format!("{status}\nCache-Control: max-age=0"), "", 1, Fetched).await;
    }
    for status in [500, 501, 502, 503, 504, 599] {
        scene.check(&format!("{status}\nCache-Control: max-age=10"), "", 5, Fetched).await;
    }
    let opted_in = Scene::with(|setting| setting.rules.store_server_errors = true).await;
    for status in [500, 501, 502, 503, 504, 599] {
        opted_in.check(&format!("{status}\nCache-Control: max-age=10"), "", 5, Hit).await;
        opted_in.check(&format!("{status}\nCache-Control: max-age=10"), "", 11, Fetched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lifetimes_by_setting() {
    let default = Scene::with(|setting| setting.rules.default_ttl = Some(Duration::from_secs(10))).await;
    default
        .check_all(&[
            ("", 9, Hit),
            ("", 10, Fetched),
            ("404", 1, Fetched),
            ("Cache-Control: max-age=1", 1, Fetched),
            ("Cache-Control: no-store", 1, Fetched),
            ("Cache-Control: private", 1, Fetched),
            ("Expires: 0", 1, Fetched),
        ])
        .await;
    let replaced = Scene::with(|setting| setting.rules.override_ttl = Some(Duration::from_secs(10))).await;
    replaced
        .check_all(&[
            ("", 9, Hit),
            ("Cache-Control: max-age=1", 9, Hit),
            ("Cache-Control: max-age=60", 10, Fetched),
            ("Cache-Control: no-store, max-age=60", 1, Fetched),
            ("Cache-Control: private, max-age=60", 1, Fetched),
            ("Cache-Control: no-cache\nETag: \"a\"", 1, Validated),
        ])
        .await;
}
