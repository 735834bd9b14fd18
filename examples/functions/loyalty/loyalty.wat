;; loyalty CUSTOMER MERCHANT POINTS ISSUER AMOUNT POINTS_PER_100
;;
;; CUSTOMER pays AMOUNT to MERCHANT, and gets points for it on the account POINTS:
;; AMOUNT * POINTS_PER_100 / 100, rounded down. They come from ISSUER, whose balance falls below zero:
;; it is minus the points in circulation.
;;
;; Returns 0, or 1 INSUFFICIENT_FUNDS, 128 BAD_AMOUNT, 129 BAD_RATE, 130 BAD_ACCOUNT.
(module
  (import "ledger" "credit" (func $credit (param $account i64) (param $amount i64)))
  (import "ledger" "debit" (func $debit (param $account i64) (param $amount i64)))
  (import "ledger" "get_balance" (func $get_balance (param $account i64) (result i64)))

  ;; Accounts of points and accounts of money are never the same: the ledger knows no currencies,
  ;; and a mistake in a parameter would turn points into money.
  (func $holds_money (param $account i64) (param $customer i64) (param $merchant i64) (result i32)
    (i32.or
      (i64.eqz (local.get $account)) ;; account 0 is the other side of deposits
      (i32.or
        (i64.eq (local.get $account) (local.get $customer))
        (i64.eq (local.get $account) (local.get $merchant)))))

  (func (export "execute")
    (param $customer i64) (param $merchant i64) (param $points i64) (param $issuer i64)
    (param $amount i64) (param $points_per_100 i64) (param i64 i64)
    (result i32)
    (local $earned i64)

    ;; At most 10^15 times 1000 points: the product below fits. One less, read as unsigned, makes 0
    ;; and the negative amounts too large as well.
    (if (i64.ge_u
          (i64.sub (local.get $amount) (i64.const 1))
          (i64.const 1000000000000000))
      (then (return (i32.const 128))))
    (if (i64.gt_u (local.get $points_per_100) (i64.const 1000))
      (then (return (i32.const 129))))

    (if (i32.or
          (i64.eq (local.get $points) (local.get $issuer))
          (i32.or
            (call $holds_money (local.get $points) (local.get $customer) (local.get $merchant))
            (call $holds_money (local.get $issuer) (local.get $customer) (local.get $merchant))))
      (then (return (i32.const 130))))

    (if (i64.lt_s (call $get_balance (local.get $customer)) (local.get $amount))
      (then (return (i32.const 1))))

    (local.set $earned
      (i64.div_u
        (i64.mul (local.get $amount) (local.get $points_per_100))
        (i64.const 100)))
    (call $credit (local.get $customer) (local.get $amount))
    (call $debit (local.get $merchant) (local.get $amount))
    (call $credit (local.get $issuer) (local.get $earned))
    (call $debit (local.get $points) (local.get $earned))
    (i32.const 0)))
